"""Every parameter that OpenAI or vLLM knows: implemented, without effect, or refused.

The types that parse bodies have the implemented parameters; `generation_parameters.py` and `pooling_parameters.py` have
their meanings and all other parameters. Unknown fields are accepted, as by OpenAI and vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from protocol.openai import generation_parameters, pooling_parameters
from protocol.openai.parameter_sets import ParameterSet
from protocol.refused_parameters import RefusedParameter, RefusingDecoder

T = TypeVar("T", bound=msgspec.Struct)

# Parameters for other servers, or about something that this server does not have.
NO_EFFECT: Mapping[ParameterSet, frozenset[str]] = {**generation_parameters.NO_EFFECT, **pooling_parameters.NO_EFFECT}
REFUSED: Mapping[ParameterSet, Mapping[str, RefusedParameter]] = {
    **generation_parameters.REFUSED,
    **pooling_parameters.REFUSED,
}


class BodyDecoder(RefusingDecoder[T]):
    """Decodes the bodies of a call, and refuses its parameters that this server does not implement."""

    def __init__(self, form: type[T], call: ParameterSet) -> None:
        """
        Args:
            form: the type with the implemented parameters.
        """
        super().__init__(form, REFUSED[call])
