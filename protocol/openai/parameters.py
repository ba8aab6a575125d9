"""Every parameter that OpenAI or vLLM knows: implemented, without effect, or refused.

The types that parse bodies have the implemented parameters; `generation_parameters.py` and `pooling_parameters.py` have
their meanings and all other parameters. Unknown fields are accepted, as by OpenAI and vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import msgspec

from protocol.http.body import Body, decode_json
from protocol.openai import generation_parameters, pooling_parameters
from protocol.openai.parameter_sets import ParameterSet
from protocol.refused_parameters import RefusedParameter
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

T = TypeVar("T", bound=msgspec.Struct)

# Parameters for other servers, or about something that this server does not have.
NO_EFFECT: Mapping[ParameterSet, frozenset[str]] = {**generation_parameters.NO_EFFECT, **pooling_parameters.NO_EFFECT}
REFUSED: Mapping[ParameterSet, Mapping[str, RefusedParameter]] = {
    **generation_parameters.REFUSED,
    **pooling_parameters.REFUSED,
}


class BodyDecoder(Generic[T]):
    """Decodes the bodies of a call, and refuses the parameters that this server does not implement."""

    def __init__(self, form: type[T], call: ParameterSet) -> None:
        """
        Args:
            form: the type with the implemented parameters.
        """
        self._refusals = REFUSED[call]
        fields = [(name, Any, None) for name in self._refusals]
        # One type for all, so that a body is decoded once.
        whole: Any = msgspec.defstruct(form.__name__, fields, bases=(form,), kw_only=True)
        self._decoder: msgspec.json.Decoder[T] = msgspec.json.Decoder(whole)
        self._refused_decoder = msgspec.json.Decoder(msgspec.defstruct("Refused", fields))

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
            self._refuse(decode_json(data, self._refused_decoder, limits))
            raise
        self._refuse(call)
        return call

    def _refuse(self, call: msgspec.Struct) -> None:
        for name, refusal in self._refusals.items():
            if (value := getattr(call, name)) is not None:
                refusal.check(name, value)
