"""A request's headers by name, indexed once."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Scope

_KEY = "runtime.headers"


def first_headers(scope: Scope) -> Mapping[bytes, bytes]:
    """The first value of each header, by its name in lower case."""
    found: Mapping[bytes, bytes] | None = scope.get(_KEY)
    if found is None:
        found = scope[_KEY] = dict(reversed(scope["headers"]))
    return found
