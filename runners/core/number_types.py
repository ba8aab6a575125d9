"""The numbers in bodies of requests: those that fit into 32 bits, so that no engine's arrays overflow."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1, lt=2**31)]
NonNegativeInt = Annotated[int, Meta(ge=0, lt=2**31)]
TokenId = NonNegativeInt
# More tokens than any text has; the operator's limits are lower.
TokenIds = Annotated[list[TokenId], Meta(max_length=2**20)]
