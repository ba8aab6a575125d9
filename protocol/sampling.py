"""Sampling parameters as requests carry them, under OpenAI's and vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from protocol.errors import InvalidRequestError
from runners.generation import Sampling

# The default of the Open Inference Protocol's generate extension.
DEFAULT_MAX_TOKENS = 20
_MAX_STOPS = 16

Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingFields(msgspec.Struct, kw_only=True):
    """The fields that all bodies share; the ranges are OpenAI's and vLLM's."""

    max_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: str | Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(max_length=_MAX_STOPS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(gt=0)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None

    def to_sampling(self, max_tokens: int | None, logprobs: int | None = None) -> Sampling:
        """
        Args:
            max_tokens: where the request names none.
            logprobs: as the protocol at hand asks for them.

        Raises:
            InvalidRequestError: a key of `logit_bias` is no token id.
        """
        return Sampling(
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ()),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_token_ids(self.logit_bias or {}),
            ignore_eos=bool(self.ignore_eos),
            logprobs=logprobs,
        )


class SamplingParameters(SamplingFields, forbid_unknown_fields=True):
    """`parameters` of V1 and the Open Inference Protocol; `max_new_tokens` is `transformers`' name for `max_tokens`."""

    max_new_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


# What the protocols themselves put among the parameters.
PROTOCOL_PARAMETERS = frozenset(
    {"binary_data_output", "content_type", "headers", "stream", "triton_enable_empty_final_response"}
)
_NAMES = tuple(field.name for field in msgspec.structs.fields(SamplingParameters))


def read_sampling(parameters: Mapping[str, Any] | None) -> Sampling:
    """The sampling that a request's parameters ask for; at most 20 tokens unless they say otherwise.

    Raises:
        InvalidRequestError: a parameter is unknown, or has a value that is not allowed.
    """
    given = {name: value for name, value in (parameters or {}).items() if name not in PROTOCOL_PARAMETERS}
    if unknown := sorted({*given} - {*_NAMES}):
        raise InvalidRequestError(f"the parameter {unknown[0]} is unknown; there are {', '.join(_NAMES)}", unknown[0])
    try:
        fields = msgspec.convert(given, SamplingParameters)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"the parameters are not as expected: {error}") from error
    if fields.max_tokens is not None and fields.max_new_tokens is not None:
        raise InvalidRequestError("max_tokens and max_new_tokens are the same: give one of them", "max_tokens")
    return fields.to_sampling(fields.max_new_tokens or DEFAULT_MAX_TOKENS)


def _token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    for key in bias:
        if not key.isdecimal() or len(key) > 9:
            raise InvalidRequestError("the keys of logit_bias must be token ids", "logit_bias")
    return {int(key): value for key, value in bias.items()}
