"""The refusal of parameters that this server does not implement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from protocol.http.body import Body, decode_json, make_fields_decoder
from runners.core.errors import InputError, UnsupportedError
from runners.core.request_limits import RequestLimits

T = TypeVar("T", bound=msgspec.Struct)


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


def refuse(*names: str, neutral: tuple[Any, ...] = (), advice: str = "") -> dict[str, RefusedParameter]:
    """Refusals of parameters that vLLM does not implement for the call either."""
    return dict.fromkeys(names, RefusedParameter(neutral, advice, on_vllm=False))


def add_refused(form: type[T], refusals: Mapping[str, RefusedParameter]) -> type[T]:
    """A type that also keeps the values of refused parameters, so that a body is decoded once.

    Raises:
        TypeError: a refused parameter would replace a field or a method of the form.
    """
    if clashing := [name for name in refusals if hasattr(form, name)]:
        raise TypeError(f"{form.__name__} has {', '.join(clashing)}")
    fields = [(name, Any, None) for name in refusals]
    whole: Any = msgspec.defstruct(form.__name__, fields, bases=(form,), kw_only=True)
    return whole  # type: ignore[no-any-return]


def check_refused(call: msgspec.Struct, refusals: Mapping[str, RefusedParameter], place: str = "") -> None:
    """
    Args:
        call: of a type with the refused parameters.
        place: as `RefusedParameter.check` has it.

    Raises:
        UnsupportedError: a parameter asks for something.
    """
    for name, refusal in refusals.items():
        if (value := getattr(call, name)) is not None:
            refusal.check(name, value, place)


class RefusingDecoder(Generic[T]):
    """Decodes the bodies of a call, and refuses the parameters that this server does not implement."""

    def __init__(self, form: type[T], refusals: Mapping[str, RefusedParameter]) -> None:
        """
        Args:
            form: the type with the implemented parameters.
        """
        self._refusals = refusals
        self._decoder = msgspec.json.Decoder(add_refused(form, refusals))
        self._refused_decoder = make_fields_decoder(refusals)

    async def read(self, body: Body, limits: RequestLimits) -> T:
        """As `decode`, where that does not block the event loop."""
        return await body.decode(lambda data: self.decode(data, limits))

    def decode(self, data: bytes, limits: RequestLimits) -> T:
        """
        Raises:
            LimitExceededError: the body exceeds a limit of the operator's.
            InputError: the body is malformed.
            UnsupportedError: a parameter would change the answer, and this server does not implement it.
        """
        try:
            call = decode_json(data, self._decoder, limits)
        except InputError:
            # What is refused explains more than what is missing: a chat has no text.
            check_refused(decode_json(data, self._refused_decoder, limits), self._refusals)
            raise
        check_refused(call, self._refusals)
        return call


def _is_same(value: Any, neutral: Any) -> bool:
    # In Python, 1 equals true and 0 equals false.
    return isinstance(value, bool) is isinstance(neutral, bool) and bool(value == neutral)
