"""OpenAI's completions, for models that `transformers` runs; vLLM answers for those that it runs.

https://platform.openai.com/docs/api-reference/completions, with vLLM's additions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from starlette.responses import Response

from protocol.generated_choices import Choice
from protocol.http.body import Body
from protocol.model_selection import SelectModel, name_in_answer, select_generator
from protocol.openai.choices import Renderer, answer
from protocol.openai.logprobs import completion_logprobs, prompt_logprobs
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.requests import CommonFields, TopLogprobs
from runners.core.errors import InputError
from runners.core.generation import AcceptedRequest, Delta, GenerationRequest, Prompt, Sampling, TokenLogprobs
from runners.core.number_types import TokenId
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator
from runners.core.sampling_parameters import check_counts

# OpenAI's default.
_MAX_TOKENS = 16


class CompletionRequest(CommonFields, kw_only=True):
    """The body of `completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    logprobs: TopLogprobs | None = None
    best_of: int | None = None
    echo: bool | None = None


_decoder = BodyDecoder(CompletionRequest, ParameterSet.COMPLETIONS)


async def answer_completion(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `completions`: every prompt is continued `n` times, all in one batch.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
    """
    call = await _decoder.read(body, limits)
    runner = select_generator(select, call.model)
    call.check(call.logprobs is not None)
    _check(call)
    check_counts(call, runner.limits)
    request = GenerationRequest(
        _read_prompts(call),
        _read_sampling(call),
        call.to_prompt_options(),
        call.choices,
        echo=bool(call.echo),
        collected=not call.stream,
    )
    return await answer(runner, request, partial(_CompletionRenderer, call, runner), call.stream_settings())


def _check(call: CompletionRequest) -> None:
    if (call.best_of or 1) > call.choices:
        raise InputError("best_of is not supported beyond n", "best_of")
    if call.max_tokens == 0 and not call.echo:
        raise InputError("max_tokens must be at least 1, unless echo is true", "max_tokens")
    if call.echo and call.use_beam_search and call.logprobs is not None:
        raise InputError("echo with logprobs is not supported with use_beam_search", "echo")
    if call.echo and call.logprob_token_ids and call.max_tokens == 0:
        raise InputError("logprob_token_ids needs max_tokens to be at least 1", "logprob_token_ids")


def _read_prompts(call: CompletionRequest) -> Sequence[Prompt]:
    items = [call.prompt] if isinstance(call.prompt, str) else call.prompt
    ids = [item for item in items if isinstance(item, int)]
    prompts = [item for item in items if not isinstance(item, int)]
    if (not ids and not prompts) or (ids and prompts):
        raise InputError("prompt must be a text, token ids, or a list of either, and not empty", "prompt")
    if call.prompt == "":
        raise InputError("prompt must not be empty", "prompt")
    return prompts or [ids]


def _read_sampling(call: CompletionRequest) -> Sampling:
    sampling = call.to_sampling(call.max_tokens, call.constraint(), _MAX_TOKENS)
    prompt_logprobs = call.prompt_logprobs
    if prompt_logprobs is None and call.echo:
        prompt_logprobs = call.logprobs
    return replace(sampling, logprobs=call.logprobs, prompt_logprobs=prompt_logprobs, **call.special_fields())


class _CompletionRenderer(Renderer):
    whole_object = chunk_object = "text_completion"

    def __init__(self, call: CompletionRequest, runner: TextGenerator, accepted: AcceptedRequest) -> None:
        super().__init__("cmpl", name_in_answer(runner, call.model), call.request_id)
        self._call = call
        self._accepted = accepted

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        with_ids = self._call.return_token_ids
        return {
            "index": index,
            "text": self._echoed_text(index) + choice.text,
            "logprobs": self._logprobs(index, choice.logprobs, choice.prompt_logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if with_ids else None,
            "prompt_logprobs": prompt_logprobs(choice.prompt_logprobs),
            "prompt_token_ids": self._prompt_ids(index) if with_ids else None,
        }

    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        call = self._call
        text = (self._echoed_text(index) if is_first else "") + delta.text
        with_ids = bool(call.return_token_ids and (is_first or delta.token_ids))
        if not (text or delta.finish_reason or delta.logprobs or with_ids):
            return None
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, delta.logprobs, delta.prompt_logprobs),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if not with_ids:
            return choice
        ids = self._prompt_ids(index) if is_first else None
        return {**choice, "prompt_token_ids": ids, "token_ids": list(delta.token_ids)}

    def _prompt_ids(self, index: int) -> list[int]:
        return list(self._accepted.prompts[self._accepted.prompt_of(index)])

    def _echoed_text(self, index: int) -> str:
        # The prompt is among the token ids of an answer that has them, as in vLLM.
        if not self._call.echo or self._call.return_token_ids:
            return ""
        return self._accepted.echoes[self._accepted.prompt_of(index)].text

    def _logprobs(
        self, index: int, output: Sequence[TokenLogprobs], prompt: Sequence[TokenLogprobs | None] | None
    ) -> dict[str, Any] | None:
        if self._call.logprobs is None:
            return None
        as_ids = bool(self._call.return_tokens_as_token_ids)
        echoed: list[TokenLogprobs | str] = []
        if self._call.echo and prompt is not None:
            position = self._accepted.prompt_of(index)
            first = self._accepted.echoes[position].first_token
            name = f"token_id:{self._accepted.prompts[position][0]}" if as_ids else first
            echoed = [name if entry is None else entry for entry in prompt]
        return completion_logprobs([*echoed, *output], as_ids, len(self._echoed_text(index)), len(echoed))
