"""The continuations that a request asks for: run together, and answered at once or as a stream."""

from __future__ import annotations

import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from starlette.responses import Response

from protocol.http.body import encode_part, json_response
from protocol.http.errors import openai_error
from protocol.http.middleware.request_id import printable, request_id
from protocol.http.offload import offload
from protocol.http.sse import stream_events
from runners.core.admission import Admitted
from runners.core.generation import Delta, FinishReason, TokenLogprobs
from runners.core.parallel_sampling import Sequences, run
from runners.core.runner import TextGenerator

T = TypeVar("T")

_LAST_LINE = "[DONE]"
# They take 2 ms to render.
_INLINE_LOGPROBS = 256


@dataclass(slots=True)
class Choice:
    """One continuation of one prompt, as far as it has come.

    Attributes:
        texts: its text in parts.
        logprobs_count: how many log probabilities it has in all.
    """

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    logprobs_count: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.logprobs_count += count_logprobs((*delta.logprobs, *(delta.prompt_logprobs or ())))
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a stream tells beside its text."""

    usage: bool = False
    usage_of_each: bool = False


class Form(ABC):
    """How answers look; completions and chats differ."""

    whole: str
    part: str

    def __init__(self, prefix: str, model: str, given_id: str | None) -> None:
        """
        Args:
            given_id: what the request calls itself; X-Request-Id goes before it, as in vLLM.
        """
        name = request_id.get() or given_id or uuid.uuid4().hex
        self._head = {"id": f"{prefix}-{printable(name)}", "created": int(time.time()), "model": model}

    def head(self, kind: str) -> dict[str, Any]:
        return {**self._head, "object": kind}

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""

    def extras(self, first: Choice) -> dict[str, Any]:
        """What stands beside the choices of a whole answer."""
        return {}

    def open(self, index: int) -> Sequence[dict[str, Any]]:
        """The chunks, but for their head, that come before a choice's first part."""
        return ()

    @abstractmethod
    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        """A part of a choice; None where there is nothing to say."""


async def answer(
    runner: TextGenerator,
    characters: int,
    prepare: Callable[[], Awaitable[tuple[Form, Sequences]]],
    streaming: Streaming | None,
) -> Response:
    """
    Args:
        characters: of the prompts.
        prepare: tokenizes them, once the request is admitted.
        streaming: None for a whole answer.

    Raises:
        InputError: there would be too many log probabilities, or a prompt cannot be continued.
        OverloadedError: too much is under way.
    """
    if streaming is not None:
        return await stream_events(_stream(runner, characters, prepare, streaming), openai_error, _LAST_LINE)
    with runner.admit(characters) as admitted:
        form, sequences = await prepare()
        choices = await complete(runner, sequences, admitted)
        usage = count_usage(runner, sequences, range(len(sequences.prompts)), [len(each.token_ids) for each in choices])
        head = {**form.head(form.whole), "service_tier": None, "system_fingerprint": None}

        def render() -> Response:
            answered = [
                encode_part(form.choice(index, choice))
                for index, choice in enumerate(choices)
                if choice.finish_reason is not None
            ]
            extras = {name: encode_part(value) for name, value in form.extras(choices[0]).items()}
            return json_response({**head, "choices": answered, "usage": usage, **extras})

        return await render_logprobs(render, sum(each.logprobs_count for each in choices))


async def render_logprobs(renderer: Callable[[], T], count: int) -> T:
    """Call a renderer, off the event loop where it has so many log probabilities that it would hold that up."""
    return renderer() if count <= _INLINE_LOGPROBS else await offload(renderer)


def count_logprobs(entries: Iterable[TokenLogprobs | None]) -> int:
    """How many log probabilities there are in a part of an answer."""
    return sum(1 + len(entry.top) for entry in entries if entry is not None)


def count_usage(
    runner: TextGenerator, sequences: Sequences, prompts: Sequence[int], tokens: Sequence[int]
) -> dict[str, Any]:
    """The `usage` of some prompts and of choices of so many tokens; there is no cache of prompts."""
    given, made = sum(len(sequences.prompts[prompt]) for prompt in prompts), sum(tokens)
    usage: dict[str, Any] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {**usage, "prompt_tokens_details": {"cached_tokens": 0}} if runner.tells_cached_tokens else usage


def _render(form: Form, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
    said = form.delta(index, delta, is_first)
    if said is not None and said.get("logprobs"):
        return {**said, "logprobs": encode_part(said["logprobs"])}
    return said


async def complete(runner: TextGenerator, sequences: Sequences, admitted: Admitted) -> list[Choice]:
    """All choices, whole.

    Raises:
        InputError: there are too many log probabilities, or a prompt cannot be continued.
    """
    sequences.check_asked()
    tokens = 0
    choices = [Choice() for _ in range(sequences.count)]
    async with contextlib.aclosing(run(runner.engine, sequences, admitted)) as deltas:
        async for item in deltas:
            if item is not None:
                index, delta = item
                choices[index].add(delta)
                tokens += len(delta.token_ids)
                sequences.check_logprobs(tokens)
    return choices


async def _stream(
    runner: TextGenerator,
    characters: int,
    prepare: Callable[[], Awaitable[tuple[Form, Sequences]]],
    streaming: Streaming,
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The chunks of an answer, from None, once it is accepted."""
    with runner.admit(characters) as admitted:
        form, sequences = await prepare()
        sequences.check_asked()
        chunks = _Chunks(runner, form, sequences, streaming)
        async with contextlib.aclosing(run(runner.engine, sequences, admitted)) as deltas:
            async for item in deltas:
                if item is None:
                    yield None
                else:
                    for chunk in await chunks.add(*item):
                        yield chunk
        if streaming.usage:
            yield chunks.usage()


class _Chunks:
    """What a stream says of each delta, and how many tokens it has told of."""

    def __init__(self, runner: TextGenerator, form: Form, sequences: Sequences, streaming: Streaming) -> None:
        self._runner = runner
        self._form = form
        self._sequences = sequences
        self._streaming = streaming
        # By index, of those choices that have begun.
        self._tokens: dict[int, int] = {}

    async def add(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a delta of a choice."""
        is_first = index not in self._tokens
        chunks = []
        if is_first:
            self._tokens[index] = 0
            chunks = [self._chunk(index, said) for said in self._form.open(index)]
        self._tokens[index] += len(delta.token_ids)
        count = count_logprobs((*delta.logprobs, *(delta.prompt_logprobs or ())))
        choice = await render_logprobs(partial(_render, self._form, index, delta, is_first), count)
        return chunks if choice is None else [*chunks, self._chunk(index, {"choices": [choice]})]

    def usage(self) -> dict[str, Any]:
        """The chunk that tells the usage of all choices."""
        sequences = self._sequences
        usage = count_usage(self._runner, sequences, range(len(sequences.prompts)), [*self._tokens.values()])
        return {**self._form.head(self._form.part), "choices": [], "usage": usage}

    def _chunk(self, index: int, said: dict[str, Any]) -> dict[str, Any]:
        whole = {**self._form.head(self._form.part), **said}
        if not self._streaming.usage_of_each:
            return whole
        prompt = index // self._sequences.choices
        return {**whole, "usage": count_usage(self._runner, self._sequences, [prompt], [self._tokens[index]])}
