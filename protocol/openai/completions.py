"""OpenAI's completions, for a model whose engine has no OpenAI layer of its own; where vLLM answers more, so does this.

https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.responses import Response

from protocol.http.body import Body
from protocol.openai.choices import Choice, Form, answer
from protocol.openai.logprobs import completion_logprobs, prompt_logprobs
from protocol.openai.parameters import Route, read_request
from protocol.openai.requests import CommonFields, TopLogprobs
from runners.core.admission import check_prompts
from runners.core.errors import InputError
from runners.core.generation import Delta, PromptOptions, Sampling, TokenLogprobs
from runners.core.models import Models
from runners.core.parallel_sampling import Sequences
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator
from runners.core.sampling_parameters import TokenId, check_counts

# OpenAI's default.
_MAX_TOKENS = 16

Prompt = str | list[TokenId]


class CompletionRequest(CommonFields, kw_only=True):
    """A body of `completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    logprobs: TopLogprobs | None = None
    best_of: int | None = None
    echo: bool | None = None


async def answer_completion(models: Models, runner: TextGenerator, body: Body, limits: RequestLimits) -> Response:
    """Answer `completions`: every prompt is continued `n` times, all in one batch.

    Raises:
        LimitExceededError: there is more in the body than the operator allows.
        InputError: the body is not as expected, or asks for what this engine does not do.
        ModelNotFoundError: there is no model of that name.
    """
    call = await read_request(body, CompletionRequest, Route.COMPLETIONS, limits)
    call.check(models, call.logprobs is not None)
    _check(call)
    check_counts(call, runner.limits)
    given = _read_prompts(call)
    characters = check_prompts(runner.limits, given, call.choices)
    sampling = _read_sampling(call)
    options = call.to_prompt_options()

    async def prepare() -> tuple[Form, Sequences]:
        prompts = [await runner.tokenize(prompt, options) for prompt in given]
        echoes = await _Echoes.make(runner, given, prompts, options, call) if call.echo else None
        sequences = Sequences(prompts, sampling, call.choices)
        return _CompletionForm(call, runner, sequences, echoes), sequences

    return await answer(runner, characters, prepare, call.streaming())


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
    if isinstance(given := call.prompt, str):
        given = [given]
    ids = [item for item in given if isinstance(item, int)]
    prompts = [item for item in given if not isinstance(item, int)]
    if (not ids and not prompts) or (ids and prompts):
        raise InputError("prompt must be a text, token ids, or a list of either, and not empty", "prompt")
    if call.prompt == "":
        raise InputError("prompt must not be empty", "prompt")
    return prompts or [ids]


def _read_sampling(call: CompletionRequest) -> Sampling:
    sampling = call.to_sampling(call.max_tokens, call.constraint(), _MAX_TOKENS)
    of_prompt = call.prompt_logprobs
    if of_prompt is None and call.echo:
        of_prompt = call.logprobs
    return replace(sampling, logprobs=call.logprobs, prompt_logprobs=of_prompt, **call.special_fields())


class _Echoes:
    """The prompts as an answer repeats them.

    Attributes:
        texts: by prompt.
        first_tokens: by prompt, the name of its first token.
    """

    def __init__(self, texts: Sequence[str], first_tokens: Sequence[str]) -> None:
        self.texts = texts
        self.first_tokens = first_tokens

    @classmethod
    async def make(
        cls,
        runner: TextGenerator,
        given: Sequence[Prompt],
        prompts: Sequence[Sequence[int]],
        options: PromptOptions,
        call: CompletionRequest,
    ) -> _Echoes:
        engine = runner.chat_engine
        texts, firsts = [], []
        for one, ids in zip(given, prompts, strict=True):
            whole = isinstance(one, str) and options.truncate_to is None
            # Who gets token ids has the prompt in them, as in vLLM.
            texts.append("" if call.return_token_ids else str(one) if whole else await engine.detokenize(ids))
            if call.logprobs is not None and ids:
                name = f"token_id:{ids[0]}" if call.return_tokens_as_token_ids else await engine.detokenize(ids[:1])
                firsts.append(name)
        return cls(texts, firsts)


class _CompletionForm(Form):
    whole = part = "text_completion"

    def __init__(
        self, call: CompletionRequest, runner: TextGenerator, sequences: Sequences, echoes: _Echoes | None
    ) -> None:
        super().__init__("cmpl", call.model or runner.name, call.request_id)
        self.sequences = sequences
        self._call = call
        self._echoes = echoes

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        with_ids = self._call.return_token_ids
        return {
            "index": index,
            "text": self._echo(index) + choice.text,
            "logprobs": self._logprobs(index, choice.logprobs, choice.prompt_logprobs),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if with_ids else None,
            "prompt_logprobs": prompt_logprobs(choice.prompt_logprobs),
            "prompt_token_ids": list(self.sequences.prompt_of(index)) if with_ids else None,
        }

    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        call = self._call
        text = (self._echo(index) if is_first else "") + delta.text
        with_ids = bool(call.return_token_ids and (is_first or delta.token_ids))
        if not (text or delta.finish_reason or delta.logprobs or with_ids):
            return None
        said = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, delta.logprobs, delta.prompt_logprobs),
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if not with_ids:
            return said
        ids = list(self.sequences.prompt_of(index)) if is_first else None
        return {**said, "prompt_token_ids": ids, "token_ids": list(delta.token_ids)}

    def _echo(self, index: int) -> str:
        return "" if self._echoes is None else self._echoes.texts[index // self.sequences.choices]

    def _logprobs(
        self, index: int, output: Sequence[TokenLogprobs], prompt: Sequence[TokenLogprobs | None] | None
    ) -> dict[str, Any] | None:
        if self._call.logprobs is None:
            return None
        echoed: list[TokenLogprobs | str] = []
        if self._echoes is not None and prompt is not None:
            first = self._echoes.first_tokens[index // self.sequences.choices]
            echoed = [first if entry is None else entry for entry in prompt]
        as_ids = bool(self._call.return_tokens_as_token_ids)
        return completion_logprobs([*echoed, *output], as_ids, len(self._echo(index)), len(echoed))
