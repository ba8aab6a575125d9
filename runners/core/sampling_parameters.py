"""Sampling parameters of requests, under OpenAI's and vLLM's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runners.core.errors import InputError
from runners.core.generation import MAX_ALLOWED_TOKENS, Constraint, PromptOptions, Sampling
from runners.core.number_types import NonNegativeInt, PositiveInt, TokenId
from runners.core.output_constraints import StructuredOutputs, read_structured_outputs
from runners.core.request_limits import RequestLimits

# The default of the Open Inference Protocol's generate extension.
DEFAULT_MAX_TOKENS = 20
# Most continuations of a prompt, and most likely tokens at a position.
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
# Most characters of a stop string, and of a bad word.
_MAX_CHARACTERS = 1024

Penalty = Annotated[float, Meta(ge=-2, le=2)]
StopString = Annotated[str, Meta(min_length=1, max_length=_MAX_CHARACTERS)]


class SamplingFields(msgspec.Struct, kw_only=True):
    """The fields of all protocols; the ranges are OpenAI's and vLLM's."""

    min_tokens: NonNegativeInt | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[str, Meta(max_length=_MAX_CHARACTERS)] | list[StopString] | None = None
    include_stop_str_in_output: bool | None = None
    stop_token_ids: list[TokenId] | None = None
    bad_words: list[Annotated[str, Meta(max_length=_MAX_CHARACTERS)]] | None = None
    allowed_token_ids: Annotated[list[TokenId], Meta(max_length=MAX_ALLOWED_TOKENS)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    # A smaller one would make logits infinite.
    repetition_penalty: Annotated[float, Meta(ge=1e-6)] | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    structured_outputs: StructuredOutputs | None = None
    src_lang: Annotated[str, Meta(min_length=1)] | None = None
    tgt_lang: Annotated[str, Meta(min_length=1)] | None = None

    def to_sampling(
        self, max_tokens: int | None, constraint: Constraint | None, default_tokens: int | None = None
    ) -> Sampling:
        """
        Args:
            max_tokens: the request's; None if it has none.
            default_tokens: the protocol's default.
            constraint: the constraint of `structured_outputs`, or of another field of the protocol.

        Raises:
            InputError: a key of `logit_bias` is no token id, or fields contradict each other.
        """
        if max_tokens is not None and (self.min_tokens or 0) > max_tokens:
            raise InputError(f"min_tokens is {self.min_tokens}, but max_tokens is {max_tokens}", "min_tokens")
        if self.allowed_token_ids == []:
            raise InputError("allowed_token_ids must not be empty", "allowed_token_ids")
        return Sampling(
            max_tokens=max_tokens,
            default_tokens=default_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) and self.stop else tuple(self.stop or ()),
            include_stop=bool(self.include_stop_str_in_output),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            bad_words=tuple(self.bad_words or ()),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty,
            logit_bias=_token_ids(self.logit_bias or {}),
            ignore_eos=bool(self.ignore_eos),
            skip_special_tokens=self.skip_special_tokens is not False,
            constraint=constraint,
            target_language=self.tgt_lang,
        )


class GenerationFields(SamplingFields, kw_only=True):
    """The fields of all calls but OpenAI's responses, which lack those for the output's length and for the prompt."""

    max_tokens: NonNegativeInt | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1, lt=2**31)] | None = None
    truncation_side: Literal["left", "right"] | None = None

    def to_prompt_options(self) -> PromptOptions:
        return PromptOptions(self.add_special_tokens, self.truncate_prompt_tokens, self.truncation_side, self.src_lang)


class SamplingParameters(GenerationFields, forbid_unknown_fields=True):
    """The `parameters` of V1 and the Open Inference Protocol if the model generates text."""

    # The name of `max_tokens` in `transformers`.
    max_new_tokens: PositiveInt | None = None


_NAMES = tuple(field.name for field in msgspec.structs.fields(SamplingParameters))


def check_counts(fields: SamplingFields, limits: RequestLimits) -> None:
    """Check the amounts that cost time at every token.

    Raises:
        LimitExceededError: there are too many stop strings, bad words, or tokens in a list.
    """
    stops = fields.stop if isinstance(fields.stop, list) else ()
    limits.check("max_stop_strings", len(stops), "stop strings", "stop")
    limits.check("max_stop_strings", len(fields.bad_words or ()), "bad_words", "bad_words")
    limits.check("max_logit_bias", len(fields.logit_bias or ()), "tokens in logit_bias", "logit_bias")
    limits.check("max_logit_bias", len(fields.stop_token_ids or ()), "stop_token_ids", "stop_token_ids")


def read_sampling(parameters: Mapping[str, Any] | None, limits: RequestLimits) -> tuple[Sampling, PromptOptions]:
    """The options in a request's parameters; by default 20 tokens, or as many as an encoder-decoder's defaults say.

    Raises:
        InputError: a parameter is unknown, or has a value that is not allowed.
        LimitExceededError: as for `check_counts`.
    """
    values = dict(parameters or {})
    if unknown := sorted({*values} - {*_NAMES}):
        raise InputError(f"the parameter {unknown[0]} is unknown; there are {', '.join(_NAMES)}", unknown[0])
    try:
        fields = msgspec.convert(values, SamplingParameters)
    except msgspec.ValidationError as error:
        raise InputError(f"the parameters are not as expected: {error}") from error
    check_counts(fields, limits)
    if fields.max_tokens is not None and fields.max_new_tokens is not None:
        raise InputError("max_tokens and max_new_tokens are the same: give one of them", "max_tokens")
    if fields.max_tokens == 0:
        raise InputError("max_tokens must be at least 1", "max_tokens")
    max_tokens = fields.max_tokens or fields.max_new_tokens
    constraint = read_structured_outputs(fields.structured_outputs)
    sampling = fields.to_sampling(max_tokens, constraint, DEFAULT_MAX_TOKENS)
    return sampling, fields.to_prompt_options()


def _token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    for key in bias:
        if not key.isdecimal() or len(key) > 9:
            raise InputError("the keys of logit_bias must be token ids", "logit_bias")
    return {int(key): value for key, value in bias.items()}
