"""The refusal of parameters that this server does not implement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from runners.core.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class RefusedParameter:
    """The refusal of a parameter that would change the answer.

    Attributes:
        neutral: the values that ask for nothing, beside null.
        advice: what to do instead, for the message; without it, the message lists the neutral values.
        on_vllm: whether vLLM implements the parameter, perhaps only with an argument of the server.
    """

    neutral: tuple[Any, ...] = ()
    advice: str = ""
    on_vllm: bool = True

    def check(self, name: str, value: Any, place: str = "") -> None:
        """
        Args:
            place: where the parameter stands, for the message, such as `parameters`.

        Raises:
            UnsupportedError: the value asks for something; the message says what to do, or which values are allowed.
        """
        if value is None or any(_is_same(value, each) for each in self.neutral):
            return
        allowed = ", ".join(msgspec.json.encode(each).decode() for each in self.neutral)
        advice = self.advice or (f"allowed: {allowed}" if allowed else "")
        raise UnsupportedError(f"{name} in {place}" if place else name, name, self.on_vllm, advice)


def _is_same(value: Any, neutral: Any) -> bool:
    # In Python, 1 equals true and 0 equals false.
    return isinstance(value, bool) is isinstance(neutral, bool) and bool(value == neutral)
