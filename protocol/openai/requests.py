"""The fields that completions and chats share, and the rules between them, which are vLLM's."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from protocol.openai.choices import StreamSettings
from protocol.openai.response_formats import ResponseFormat, read_response_format
from runners.core.errors import InputError
from runners.core.generation import BeamSearch, Constraint
from runners.core.number_types import TokenId
from runners.core.output_constraints import read_structured_outputs
from runners.core.sampling_parameters import MAX_CHOICES, MAX_TOP_LOGPROBS, GenerationFields

_MAX_LOGPROB_TOKENS = 128

TopLogprobs = Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)]


class StreamOptions(msgspec.Struct):
    """OpenAI's `stream_options`, with vLLM's field `continuous_usage_stats`."""

    include_usage: bool | UnsetType | None = UNSET
    continuous_usage_stats: bool | UnsetType | None = UNSET


class CommonFields(GenerationFields, kw_only=True):
    """The fields of both bodies."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    response_format: ResponseFormat | None = None
    prompt_logprobs: TopLogprobs | None = None
    logprob_token_ids: Annotated[list[TokenId], Meta(max_length=_MAX_LOGPROB_TOKENS)] | None = None
    return_tokens_as_token_ids: bool | None = None
    return_token_ids: bool | None = None
    request_id: str | None = None

    @property
    def choices(self) -> int:
        """Number of continuations of each prompt."""
        return self.n or 1

    def check(self, wants_logprobs: bool) -> None:
        """
        Raises:
            InputError: fields contradict each other.
        """
        options = self.stream_options
        if options is not None and not self.stream and options != StreamOptions():
            raise InputError("stream_options needs stream to be true", "stream_options")
        if self.stream and self.use_beam_search:
            raise InputError("use_beam_search is not supported with stream", "use_beam_search")
        if self.stream and self.prompt_logprobs:
            raise InputError("prompt_logprobs is not supported with stream", "prompt_logprobs")
        if self.logprob_token_ids and not wants_logprobs:
            raise InputError("logprob_token_ids needs logprobs", "logprob_token_ids")
        if self.logprob_token_ids and self.use_beam_search:
            raise InputError("logprob_token_ids is not supported with use_beam_search", "logprob_token_ids")

    def stream_settings(self) -> StreamSettings | None:
        """Which chunks have the usage; None for a whole answer."""
        if not self.stream:
            return None
        options = self.stream_options or StreamOptions()
        include_usage = options.include_usage is True
        return StreamSettings(include_usage, include_usage and options.continuous_usage_stats is True)

    def constraint(self) -> Constraint | None:
        """The constraint of `response_format` or `structured_outputs`.

        Raises:
            InputError: there are two constraints, or one is malformed.
        """
        response_format = read_response_format(self.response_format)
        structured_outputs = read_structured_outputs(self.structured_outputs)
        if response_format is not None and structured_outputs is not None:
            raise InputError("give one of response_format and structured_outputs", "structured_outputs")
        return response_format or structured_outputs

    def beam_search(self) -> BeamSearch | None:
        """As many beams as choices, as in vLLM."""
        if not self.use_beam_search:
            return None
        penalty = 1.0 if self.length_penalty is None else self.length_penalty
        return BeamSearch(self.choices, self.choices, penalty)

    def special_fields(self) -> dict[str, Any]:
        """The fields of `Sampling` that only OpenAI's API sets."""
        return {
            "beam_search": self.beam_search(),
            "logprob_token_ids": tuple(self.logprob_token_ids or ()),
        }
