"""The bodies of the Hugging Face inference protocol for models that generate text.

Names are those of Text Generation Inference, whose schema is the hub's, and for models that read one text and write
another those of the pipelines of `transformers` too. https://huggingface.co/docs/text-generation-inference
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.huggingface.requests import Truncation, truncates
from runners.core.errors import InputError
from runners.core.generation import Constraint, GenerationRequest, PromptOptions, Sampling
from runners.core.number_types import NonNegativeInt, PositiveInt
from runners.core.output_constraints import read_grammar
from runners.core.request_limits import RequestLimits
from runners.core.sampling_parameters import (
    MAX_CHOICES,
    MAX_TOP_LOGPROBS,
    Penalty,
    SamplingFields,
    StopString,
    check_counts,
)


class Grammar(msgspec.Struct, forbid_unknown_fields=True):
    """A format of the output: a JSON schema, or a regular expression."""

    type: Literal["json", "json_object", "json_schema", "regex"]
    value: Any


class GenerateParameters(msgspec.Struct, kw_only=True):
    """Text Generation Inference's. Without `do_sample` and filters of tokens, the output is greedy."""

    best_of: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    decoder_input_details: bool | None = None
    details: bool | None = None
    do_sample: bool | None = None
    frequency_penalty: Penalty | None = None
    grammar: Grammar | None = None
    max_new_tokens: PositiveInt | None = None
    repetition_penalty: Annotated[float, Meta(ge=1e-6)] | None = None
    return_full_text: bool | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: list[StopString] | None = None
    temperature: Annotated[float, Meta(ge=0)] | None = None
    top_k: NonNegativeInt | None = None
    top_n_tokens: Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    truncate: PositiveInt | None = None
    typical_p: Annotated[float, Meta(gt=0, le=1)] | None = None

    @property
    def has_details(self) -> bool:
        """Whether the answer has the tokens."""
        return bool(self.details or self.decoder_input_details)

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled, by the rules of Text Generation Inference."""
        warps = (self.temperature, self.top_p, self.typical_p)
        return bool(self.do_sample or self.top_k or any(warp not in (None, 1.0) for warp in warps))

    @property
    def max_tokens(self) -> int | None:
        """The request's limit of the output's tokens."""
        return self.max_new_tokens

    def constraint(self) -> Constraint | None:
        """
        Raises:
            InputError: the grammar is malformed.
        """
        return None if self.grammar is None else read_grammar(self.grammar.type, self.grammar.value, "grammar")

    def prompt_options(self) -> PromptOptions:
        return PromptOptions(truncate_to=self.truncate)

    def sampling_fields(self) -> SamplingFields:
        """The sampling, with the defaults of Text Generation Inference, which reads none from the model's files."""
        return SamplingFields(
            temperature=(1.0 if self.temperature is None else self.temperature) if self.samples else 0.0,
            top_p=self.top_p or 1.0,
            top_k=self.top_k or 0,
            min_p=0.0,
            seed=self.seed,
            stop=self.stop,
            include_stop_str_in_output=True,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty or 1.0,
        )


class SequenceParameters(GenerateParameters, kw_only=True):
    """Those of models that read one text and write another; what is not set is as the model's files say."""

    min_new_tokens: NonNegativeInt | None = None
    max_length: Annotated[int, Meta(ge=2, lt=2**31)] | None = None
    min_length: NonNegativeInt | None = None
    src_lang: Annotated[str, Meta(min_length=1)] | None = None
    tgt_lang: Annotated[str, Meta(min_length=1)] | None = None
    truncation: Truncation | None = None

    @property
    def max_tokens(self) -> int | None:
        # In `transformers` the length of an output counts its start token too.
        return self.max_new_tokens if self.max_length is None else self.max_length - 1

    def prompt_options(self) -> PromptOptions:
        is_truncated = self.truncation is not None and truncates(self.truncation)
        truncate_to = -1 if is_truncated and self.truncate is None else self.truncate
        return PromptOptions(truncate_to=truncate_to, source_language=self.src_lang)

    def sampling_fields(self) -> SamplingFields:
        if self.do_sample is False:
            temperature: float | None = 0.0
        elif self.samples:
            temperature = 1.0 if self.temperature is None else self.temperature
        else:
            temperature = None
        return SamplingFields(
            min_tokens=max(self.min_new_tokens or 0, (self.min_length or 0) - 1),
            temperature=temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=self.stop,
            include_stop_str_in_output=True,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            tgt_lang=self.tgt_lang,
        )


class GenerationBody(msgspec.Struct, kw_only=True):
    """The body for text generation: a text, or several."""

    inputs: str | Annotated[list[str], Meta(min_length=1)]
    parameters: GenerateParameters = msgspec.field(default_factory=GenerateParameters)
    stream: bool | None = False

    @property
    def prompts(self) -> list[str]:
        return [self.inputs] if isinstance(self.inputs, str) else self.inputs

    @property
    def choices(self) -> int:
        """Number of continuations of each prompt, of which the answer has the best."""
        return self.parameters.best_of or 1

    def to_request(self, limits: RequestLimits) -> GenerationRequest:
        """
        Raises:
            LimitExceededError: there are too many prompts or stop strings.
            InputError: fields contradict each other, or a grammar is malformed.
        """
        self._check()
        limits.check("max_client_batch_size", len(self.prompts), "texts", "inputs")
        parameters = self.parameters
        return GenerationRequest(
            self.prompts,
            self._read_sampling(limits),
            parameters.prompt_options(),
            self.choices,
            # The text of a prompt's first token, which has no log probability.
            echo=bool(parameters.decoder_input_details),
            collected=not self.stream,
        )

    def _read_sampling(self, limits: RequestLimits) -> Sampling:
        parameters = self.parameters
        fields = parameters.sampling_fields()
        check_counts(fields, limits)
        needs_logprobs = self.stream or parameters.has_details or self.choices > 1
        return replace(
            fields.to_sampling(parameters.max_tokens, parameters.constraint()),
            typical_p=parameters.typical_p,
            samples=parameters.samples,
            logprobs=parameters.top_n_tokens or 0 if needs_logprobs else None,
            prompt_logprobs=0 if parameters.decoder_input_details else None,
        )

    def _check(self) -> None:
        parameters = self.parameters
        if self.stream and not isinstance(self.inputs, str):
            raise InputError("stream needs a single text in inputs", "stream")
        for name, is_asked in (
            ("decoder_input_details", parameters.decoder_input_details),
            ("best_of", self.choices > 1),
        ):
            if self.stream and is_asked:
                raise InputError(f"{name} is not supported with stream", name)
        if self.choices > 1 and not parameters.samples:
            raise InputError("best_of needs do_sample: all outputs would be the same", "best_of")
        if isinstance(parameters, SequenceParameters) and parameters.max_length and parameters.max_new_tokens:
            raise InputError("give one of max_length and max_new_tokens", "max_length")


class SequenceBody(GenerationBody, kw_only=True):
    """The body for translation, summarization and the like."""

    parameters: SequenceParameters = msgspec.field(default_factory=SequenceParameters)


def merge_nested(fields: dict[str, Any]) -> dict[str, Any]:
    """The body, with the parameters that clients put into an object of their own, `generate_parameters`.

    Raises:
        InputError: a parameter is in both places.
    """
    parameters = fields.get("parameters")
    if not isinstance(parameters, dict) or not isinstance(nested := parameters.get(_NESTED, ""), dict | None):
        return fields
    nested = nested or {}
    others = {name: value for name, value in parameters.items() if name != _NESTED}
    if both := sorted(others.keys() & nested.keys()):
        raise InputError(f"{both[0]} is in parameters and in {_NESTED}; give it once", both[0])
    return {**fields, "parameters": {**others, **nested}}


_NESTED = "generate_parameters"
