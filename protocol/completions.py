"""OpenAI's completions and chat completions, for a model whose engine has no OpenAI layer of its own.

https://platform.openai.com/docs/api-reference/completions and .../chat; where vLLM answers more, so does this.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from protocol.body import json_response, parse_json
from protocol.calls import until_disconnect
from protocol.errors import InvalidRequestError, ModelNotFoundError, openai_error
from protocol.sampling import SamplingFields
from protocol.sse import stream_events
from runners.generation import Delta, FinishReason, Sampling, TokenLogprob, TokenLogprobs
from runners.generator.runner import GeneratorRunner
from runners.inference import Models

# OpenAI's default for completions; a chat goes on as long as there is room.
_COMPLETION_TOKENS = 16
_MAX_CHOICES = 128
_MAX_TOP_LOGPROBS = 20
_LAST_LINE = "[DONE]"

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]
Prompt = str | list[TokenId]
TopLogprobs = Annotated[int, Meta(ge=0, le=_MAX_TOP_LOGPROBS)]


class StreamOptions(msgspec.Struct):
    """What a stream ends with."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class CommonFields(SamplingFields, kw_only=True):
    """What completions and chats have in common."""

    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=_MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    use_beam_search: bool | None = None
    # Read to be refused, like some below: to leave them out silently would change the answer.
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    prompt_logprobs: int | None = None


class CompletionRequest(CommonFields, kw_only=True):
    """A body of `completions`."""

    prompt: str | list[TokenId | str | list[TokenId]]
    logprobs: TopLogprobs | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None


class ChatRequest(CommonFields, kw_only=True):
    """A body of `chat/completions`."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]
    max_completion_tokens: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    echo: bool | None = None
    chat_template: str | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None


_completion_decoder = msgspec.json.Decoder(CompletionRequest)
_chat_decoder = msgspec.json.Decoder(ChatRequest)


async def answer_completion(request: Request, models: Models, runner: GeneratorRunner, body: bytes) -> Response:
    """Answer `completions`: every prompt is continued `n` times, all in one batch.

    Raises:
        InvalidRequestError: the body is not as expected, or asks for what this engine does not do.
        ModelNotFoundError: there is no model of that name.
    """
    call = parse_json(body, _completion_decoder, "the body")
    _check(models, call, {"echo": call.echo, "suffix": call.suffix, "best_of": (call.best_of or 1) > (call.n or 1)})
    prompts = [
        await runner.tokenize(prompt) if isinstance(prompt, str) else list(prompt) for prompt in _prompts(call.prompt)
    ]
    sampling = call.to_sampling(_COMPLETION_TOKENS, call.logprobs)
    form = _CompletionForm("cmpl", call.model or runner.name)
    return await _answer(request, runner, form, call, prompts, sampling)


async def answer_chat(request: Request, models: Models, runner: GeneratorRunner, body: bytes) -> Response:
    """Answer `chat/completions`; tools are put into the prompt, and what the model makes of them is its text.

    Raises:
        InvalidRequestError: the body is not as expected, or asks for what this engine does not do.
        ModelNotFoundError: there is no model of that name.
    """
    call = parse_json(body, _chat_decoder, "the body")
    forced = call.tool_choice not in (None, "auto", "none")
    _check(models, call, {"tool_choice": forced, "echo": call.echo, "chat_template": call.chat_template})
    if call.top_logprobs is not None and not call.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    prompt = await runner.tokenize_chat(
        [_plain_message(message, position) for position, message in enumerate(call.messages)],
        None if call.tool_choice == "none" else call.tools,
        {
            **(call.chat_template_kwargs or {}),
            "add_generation_prompt": call.add_generation_prompt,
            "continue_final_message": call.continue_final_message,
        },
    )
    sampling = call.to_sampling(call.max_completion_tokens, (call.top_logprobs or 0) if call.logprobs else None)
    form = _ChatForm("chatcmpl", call.model or runner.name)
    return await _answer(request, runner, form, call, [prompt], sampling)


def _check(models: Models, call: CommonFields, unsupported: Mapping[str, Any]) -> None:
    if call.model and models.find(call.model) is None:
        raise ModelNotFoundError(call.model)
    plain = call.response_format is None or call.response_format.get("type") == "text"
    asked = {
        **unsupported,
        "response_format": not plain,
        "structured_outputs": call.structured_outputs,
        "prompt_logprobs": call.prompt_logprobs is not None,
        "use_beam_search": call.use_beam_search,
    }
    for name, value in asked.items():
        if value:
            raise InvalidRequestError(f"{name} is not supported where transformers runs the model, only on vLLM", name)
    if call.stream_options is not None and not call.stream:
        raise InvalidRequestError("stream_options needs stream to be true", "stream_options")


def _prompts(given: str | list[TokenId | str | list[TokenId]]) -> Sequence[Prompt]:
    if isinstance(given, str):
        return [given]
    ids = [item for item in given if isinstance(item, int)]
    prompts = [item for item in given if not isinstance(item, int)]
    if (not ids and not prompts) or (ids and prompts):
        raise InvalidRequestError("prompt must be a text, token ids, or a list of either, and not empty", "prompt")
    return prompts or [ids]


def _plain_message(message: dict[str, Any], position: int) -> dict[str, Any]:
    """A message whose content is a string, as chat templates of text models expect it."""
    if not isinstance(message.get("role"), str):
        raise InvalidRequestError(f"messages[{position}] has no role", "messages")
    content = message.get("content")
    if content is None or isinstance(content, str):
        return {**message, "content": content or ""}
    parts = content if isinstance(content, list) else [content]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise InvalidRequestError(f"messages[{position}] has content that is no text", "messages")
    return {**message, "content": "".join(part["text"] for part in parts)}


@dataclass(slots=True)
class _Choice:
    """One continuation of one prompt, as far as it has come."""

    text: str = ""
    tokens: int = 0
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.tokens += len(delta.token_ids)
        self.finish_reason = delta.finish_reason
        self.logprobs += delta.logprobs


class _Form:
    """How answers look; completions and chats differ."""

    whole: str
    part: str

    def __init__(self, prefix: str, model: str) -> None:
        self._head = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, kind: str, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        answer = {**self._head, "object": kind, "choices": choices}
        return answer if usage is None else {**answer, "usage": usage}

    def opening(self) -> dict[str, Any] | None:
        """What stands in the first part of a choice, if there is such a part."""
        return None

    def choice(self, text: str, logprobs: Sequence[TokenLogprobs] | None, offset: int) -> dict[str, Any]:
        raise NotImplementedError

    def delta(self, text: str, logprobs: Sequence[TokenLogprobs] | None, offset: int) -> dict[str, Any]:
        raise NotImplementedError


class _CompletionForm(_Form):
    whole = part = "text_completion"

    def choice(self, text: str, logprobs: Sequence[TokenLogprobs] | None, offset: int) -> dict[str, Any]:
        if logprobs is None:
            return {"text": text, "logprobs": None}
        offsets = []
        for entry in logprobs:
            offsets.append(offset)
            offset += len(entry.chosen.text)
        return {
            "text": text,
            "logprobs": {
                "tokens": [entry.chosen.text for entry in logprobs],
                "token_logprobs": [entry.chosen.logprob for entry in logprobs],
                "top_logprobs": [
                    {each.text: each.logprob for each in (*entry.top, entry.chosen)} for entry in logprobs
                ],
                "text_offset": offsets,
            },
        }

    delta = choice


class _ChatForm(_Form):
    whole, part = "chat.completion", "chat.completion.chunk"

    def opening(self) -> dict[str, Any] | None:
        return {"delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}

    def choice(self, text: str, logprobs: Sequence[TokenLogprobs] | None, offset: int) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}, "logprobs": _chat_logprobs(logprobs)}

    def delta(self, text: str, logprobs: Sequence[TokenLogprobs] | None, offset: int) -> dict[str, Any]:
        return {"delta": {"content": text}, "logprobs": _chat_logprobs(logprobs)}


def _chat_logprobs(logprobs: Sequence[TokenLogprobs] | None) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    return {
        "content": [
            {**_chat_logprob(entry.chosen), "top_logprobs": [_chat_logprob(top) for top in entry.top]}
            for entry in logprobs
        ]
    }


def _chat_logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.text, "logprob": entry.logprob, "bytes": list(entry.data)}


async def _answer(
    request: Request,
    runner: GeneratorRunner,
    form: _Form,
    call: CommonFields,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> Response:
    count = call.n or 1
    # With a seed, the choices of one prompt are to differ, and to be the same the next time.
    samplings = [replace(sampling, seed=sampling.seed + i if sampling.seed is not None else None) for i in range(count)]
    sequences = [(prompt, one) for prompt in prompts for one in samplings]
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    if call.stream:
        usage = call.stream_options is not None and call.stream_options.include_usage
        parts = _stream(runner, form, sequences, prompt_tokens, usage)
        return await stream_events(parts, openai_error, _LAST_LINE)
    choices = await until_disconnect(request, _complete(runner, sequences))
    return json_response(
        form.answer(
            form.whole,
            [
                {
                    "index": index,
                    **form.choice(choice.text, None if sampling.logprobs is None else choice.logprobs, 0),
                    "finish_reason": choice.finish_reason,
                }
                for index, choice in enumerate(choices)
            ],
            _usage(prompt_tokens, sum(choice.tokens for choice in choices)),
        )
    )


def _usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


async def _complete(runner: GeneratorRunner, sequences: Sequence[tuple[Sequence[int], Sampling]]) -> list[_Choice]:
    choices = [_Choice() for _ in sequences]
    async with contextlib.aclosing(_deltas(runner, sequences)) as deltas:
        async for index, delta in deltas:
            choices[index].add(delta)
    return choices


async def _stream(
    runner: GeneratorRunner,
    form: _Form,
    sequences: Sequence[tuple[Sequence[int], Sampling]],
    prompt_tokens: int,
    with_usage: bool,
) -> AsyncGenerator[dict[str, Any], None]:
    choices = [_Choice() for _ in sequences]
    opened: set[int] = set()
    async with contextlib.aclosing(_deltas(runner, sequences)) as deltas:
        async for index, delta in deltas:
            if index not in opened and (opening := form.opening()) is not None:
                yield form.answer(form.part, [{"index": index, **opening}], None)
            opened.add(index)
            offset = len(choices[index].text)
            choices[index].add(delta)
            if not (delta.text or delta.finish_reason or delta.logprobs):
                continue
            logprobs = None if sequences[index][1].logprobs is None else delta.logprobs
            part = form.delta(delta.text, logprobs, offset)
            yield form.answer(form.part, [{"index": index, **part, "finish_reason": delta.finish_reason}], None)
    if with_usage:
        yield form.answer(form.part, [], _usage(prompt_tokens, sum(choice.tokens for choice in choices)))


async def _deltas(
    runner: GeneratorRunner, sequences: Sequence[tuple[Sequence[int], Sampling]]
) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all sequences as they come; to close the iterator frees all of them."""
    arrived: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()

    async def run(index: int, prompt: Sequence[int], sampling: Sampling) -> None:
        try:
            async with contextlib.aclosing(runner.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    arrived.put_nowait((index, delta))
        except Exception as error:
            arrived.put_nowait((index, error))

    with runner.admit():
        tasks = [asyncio.create_task(run(index, *sequence)) for index, sequence in enumerate(sequences)]
        try:
            unfinished = len(tasks)
            while unfinished:
                index, delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                yield index, delta
                unfinished -= delta.finish_reason is not None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
