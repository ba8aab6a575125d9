"""A request's sampling as vLLM's `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from runners.core.errors import InputError
from runners.core.generation import Constraint, Sampling

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams


def make_sampling_params(sampling: Sampling, defaults: Mapping[str, Any]) -> SamplingParams:
    """The parameters of a request of V1 or the Open Inference Protocol; vLLM reads those of OpenAI's API itself.

    Args:
        defaults: the model's own parameters, by vLLM's names.

    Raises:
        InputError: the request asks for something that these protocols only support on `transformers`.
    """
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    if sampling.beam_search is not None:
        raise InputError("beam search is only supported by OpenAI's API where vLLM runs the model")
    if sampling.asks_typical:
        raise InputError("typical_p is not supported where vLLM runs the model: leave it out", "typical_p")
    if sampling.target_language is not None:
        raise InputError("tgt_lang is not supported where vLLM runs the model: it runs no model that translates")
    optional = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
    }
    return SamplingParams(
        **{**defaults, **{name: value for name, value in optional.items() if value is not None}}
        | {
            "max_tokens": max_output_tokens(sampling),
            "min_tokens": sampling.min_tokens,
            "seed": sampling.seed,
            "stop": list(sampling.stop),
            "include_stop_str_in_output": sampling.include_stop,
            "stop_token_ids": [*defaults.get("stop_token_ids", ()), *sampling.stop_token_ids],
            "bad_words": list(sampling.bad_words),
            "allowed_token_ids": None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
            "skip_special_tokens": sampling.skip_special_tokens,
            "structured_outputs": _structured_outputs(sampling.constraint),
            "presence_penalty": sampling.presence_penalty,
            "frequency_penalty": sampling.frequency_penalty,
            "logit_bias": dict(sampling.logit_bias) or None,
            "logprobs": sampling.logprobs,
            "prompt_logprobs": sampling.prompt_logprobs,
            "ignore_eos": sampling.ignore_eos,
            "output_kind": RequestOutputKind.DELTA,
        }
    )


def max_output_tokens(sampling: Sampling) -> int | None:
    """The limit of an output's tokens; None for as many as the context has room for."""
    return sampling.default_tokens if sampling.max_tokens is None else sampling.max_tokens


def check_length(prompt: int, max_tokens: int | None, max_length: int) -> None:
    """Check that a prompt and its output fit a decoder's context; the messages are vLLM's.

    Args:
        prompt: number of tokens of the prompt.

    Raises:
        InputError: the prompt, or the prompt with its output, is too long, or the prompt is empty.
    """
    if not prompt:
        raise InputError("the prompt has no tokens; give at least one")
    if prompt >= max_length:
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, but the prompt has {prompt} tokens; "
            "please shorten it"
        )
    if max_tokens is not None and prompt + max_tokens > max_length:
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, but {prompt + max_tokens} were asked for: "
            f"{prompt} of the prompt and {max_tokens} of max_tokens; please reduce one of them"
        )


def _structured_outputs(constraint: Constraint | None) -> StructuredOutputsParams | None:
    from vllm.sampling_params import StructuredOutputsParams

    if constraint is None:
        return None
    value: Any = {"json_object": True, "choice": list(constraint.value)}.get(constraint.kind, constraint.value)
    return StructuredOutputsParams(**{constraint.kind: value})
