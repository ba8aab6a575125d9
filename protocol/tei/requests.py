"""What the calls of Text Embeddings Inference share: the fields about long texts, and the call of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request

from protocol.http.disconnects import until_disconnect
from runners.core.answer_options import TruncationSide
from runners.core.errors import InputError
from runners.core.predictions import Options, Prediction, TextInput, TokenInput
from runners.core.runner import Runner

_SIDES = frozenset(TruncationSide)


class TruncationFields(msgspec.Struct, kw_only=True):
    """`truncate` is true unless the operator says otherwise; `truncation_direction` is Left or Right, in any case."""

    truncate: bool | None = None
    truncation_direction: str | UnsetType = UNSET

    def to_options(self, **more: Any) -> dict[str, Any]:
        """The request's options, under the names of the other protocols' `parameters`.

        Args:
            more: further options; None is an option that the request does not have.

        Raises:
            InputError: `truncation_direction` is no side.
        """
        side = None
        if self.truncation_direction is not UNSET:
            side = self.truncation_direction.lower()
            if side not in _SIDES:
                raise InputError(f"truncation_direction must be Left or Right, not {self.truncation_direction[:20]!r}")
        options = {"truncation": self.truncate, "truncation_side": side, **more}
        return {name: value for name, value in options.items() if value is not None}


class PromptedFields(TruncationFields, kw_only=True):
    """`prompt_name` is one of the prompts in the model's files, which precedes every text."""

    prompt_name: str | None = None

    def to_options(self, **more: Any) -> dict[str, Any]:
        return super().to_options(prompt_name=self.prompt_name, **more)


async def infer(
    request: Request, runner: Runner, inputs: Sequence[TextInput | TokenInput], options: Options
) -> Sequence[Prediction]:
    """Call the model, until the client leaves."""
    return await until_disconnect(request, runner.infer(inputs, options))
