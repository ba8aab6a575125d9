"""Which values of a refused parameter are accepted, and what the message says of the others."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.refused_parameters import RefusedParameter
from runners.core.errors import UnsupportedError


@pytest.mark.parametrize(
    ("neutral", "value", "is_accepted"),
    [
        ((), None, True),
        ((True,), True, True),
        # In Python 1 equals true, and 0 equals false.
        ((True,), 1, False),
        ((True,), 1.0, False),
        ((False,), 0, False),
        ((1,), True, False),
        ((1,), 1.0, True),
        (({},), {}, True),
        (({},), {"a": 1}, False),
        (("auto", "none"), "none", True),
    ],
)
def test_neutral_values(neutral: tuple[Any, ...], value: Any, is_accepted: bool) -> None:
    refused = RefusedParameter(neutral)
    if is_accepted:
        refused.check("name", value)
        return
    with pytest.raises(UnsupportedError):
        refused.check("name", value)


@pytest.mark.parametrize(
    ("refused", "place", "message"),
    [
        (RefusedParameter(on_vllm=False), "", "a is not supported here"),
        (RefusedParameter(), "", "a is not supported here, only by OpenAI's API where vLLM runs the model"),
        (RefusedParameter((False, "no"), on_vllm=False), "", 'a is not supported here; allowed: false, "no"'),
        (RefusedParameter((0,), "use b", on_vllm=False), "the body", "a in the body is not supported here; use b"),
    ],
)
def test_messages(refused: RefusedParameter, place: str, message: str) -> None:
    with pytest.raises(UnsupportedError) as raised:
        refused.check("a", 7, place)
    assert (str(raised.value), raised.value.param) == (message, "a")
