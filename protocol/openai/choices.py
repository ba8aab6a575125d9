"""The continuations that a request asks for: run together, and answered at once or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from protocol.body import encode_lists, json_response
from protocol.calls import render_off_loop, until_disconnect
from protocol.errors import InvalidRequestError, openai_error
from protocol.request_id import printable, request_id
from protocol.sampling import MAX_ALLOWED_TOKENS
from protocol.sse import stream_events
from runners.generation import Delta, FinishReason, Sampling, TokenLogprobs
from runners.generator.runner import GeneratorRunner

T = TypeVar("T")

_OfPrompt = asyncio.Future[tuple[TokenLogprobs | None, ...] | None]

_LAST_LINE = "[DONE]"
# What one body may ask for: 7 us, and 80 bytes of an answer, each.
_MAX_LOGPROBS = 2**20
# A log probability takes as long to render as so many numbers.
_NUMBERS_PER_LOGPROB = 70


@dataclass(frozen=True)
class Sequences:
    """Prompts, and how each of their choices is continued: one sequence each, or all of a prompt's by beam search."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    choices: int

    @property
    def count(self) -> int:
        """How many choices there are in all."""
        return len(self.prompts) * self.choices

    def prompt_of(self, index: int) -> Sequence[int]:
        return self.prompts[index // self.choices]

    def list_runs(self) -> list[Sampling]:
        """How the choices of each prompt are sampled: those of a seed differ, and only the first computes the prompt's
        log probabilities."""
        if self.sampling.beam_search is not None:
            return [self.sampling]
        first, seed = self.sampling, self.sampling.seed
        others = replace(first, prompt_logprobs=None)
        return [first, *(replace(others, seed=None if seed is None else seed + j) for j in range(1, self.choices))]

    def check_asked(self) -> None:
        """
        Raises:
            InvalidRequestError: too many log probabilities are asked for, as far as the request says how many, or
                too many allowed tokens of all choices together.
        """
        sampling = self.sampling
        if (allowed := len(sampling.allowed_token_ids or ()) * self.count) > MAX_ALLOWED_TOKENS:
            raise InvalidRequestError(
                f"allowed_token_ids has {allowed} tokens for {self.count} choices; {MAX_ALLOWED_TOKENS} are the most",
                "allowed_token_ids",
            )
        most = sampling.default_tokens if sampling.max_tokens is None else sampling.max_tokens
        self.check_logprobs(self.count * (most or 0))

    def check_logprobs(self, tokens: int) -> None:
        """
        Args:
            tokens: of all outputs.

        Raises:
            InvalidRequestError: there are too many log probabilities.
        """
        if (count := tokens * self._width + self._of_prompts) > _MAX_LOGPROBS:
            raise InvalidRequestError(
                f"{count} log probabilities are more than {_MAX_LOGPROBS}: ask for fewer choices, tokens or logprobs",
                "logprobs" if self._width else "prompt_logprobs",
            )

    @property
    def _width(self) -> int:
        """How many log probabilities there are of each token of an output."""
        sampling = self.sampling
        return 0 if sampling.logprobs is None else max(sampling.logprobs, len(sampling.logprob_token_ids)) + 1

    @cached_property
    def _of_prompts(self) -> int:
        """How many log probabilities of prompts there are: each choice repeats those of its prompt."""
        top = self.sampling.prompt_logprobs
        return 0 if top is None else sum(map(len, self.prompts)) * self.choices * (top + 1)


@dataclass(slots=True)
class Choice:
    """One continuation of one prompt, as far as it has come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
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
    request: Request, runner: GeneratorRunner, form: Form, sequences: Sequences, streaming: Streaming | None
) -> Response:
    """
    Args:
        streaming: None for a whole answer.

    Raises:
        InvalidRequestError: there would be too many log probabilities.
    """
    sequences.check_asked()
    if streaming is not None:
        return await stream_events(_stream(runner, form, sequences, streaming), openai_error, _LAST_LINE)
    choices = await until_disconnect(request, complete(runner, sequences))
    usage = count_usage(runner, sequences, range(len(sequences.prompts)), [len(each.token_ids) for each in choices])
    head = {**form.head(form.whole), "service_tier": None, "system_fingerprint": None}

    def render() -> Response:
        answered = [
            encode_lists(form.choice(index, choice))
            for index, choice in enumerate(choices)
            if choice.finish_reason is not None
        ]
        return json_response({**head, "choices": answered, "usage": usage, **encode_lists(form.extras(choices[0]))})

    entries = (entry for each in choices for entry in (*each.logprobs, *(each.prompt_logprobs or ())))
    return await render_logprobs(render, count_logprobs(entries))


async def render_logprobs(renderer: Callable[[], T], count: int) -> T:
    """Call a renderer, in a thread where it has so many log probabilities that the event loop would be held up."""
    return await render_off_loop(renderer, count * _NUMBERS_PER_LOGPROB)


def count_logprobs(entries: Iterable[TokenLogprobs | None]) -> int:
    """How many log probabilities there are in a part of an answer."""
    return sum(1 + len(entry.top) for entry in entries if entry is not None)


def count_usage(
    runner: GeneratorRunner, sequences: Sequences, prompts: Sequence[int], tokens: Sequence[int]
) -> dict[str, Any]:
    """The `usage` of some prompts and of choices of so many tokens; there is no cache of prompts."""
    given, made = sum(len(sequences.prompts[prompt]) for prompt in prompts), sum(tokens)
    usage: dict[str, Any] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {**usage, "prompt_tokens_details": {"cached_tokens": 0}} if runner.tells_cached_tokens else usage


def _render(form: Form, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
    said: dict[str, Any] | None = encode_lists(form.delta(index, delta, is_first))
    return said


async def complete(runner: GeneratorRunner, sequences: Sequences) -> list[Choice]:
    """All choices, whole.

    Raises:
        InvalidRequestError: there are too many log probabilities.
    """
    tokens = 0
    choices = [Choice() for _ in range(sequences.count)]
    async with contextlib.aclosing(run(runner, sequences)) as deltas:
        async for index, delta in deltas:
            choices[index].add(delta)
            tokens += len(delta.token_ids)
            sequences.check_logprobs(tokens)
    return choices


async def _stream(
    runner: GeneratorRunner, form: Form, sequences: Sequences, streaming: Streaming
) -> AsyncGenerator[dict[str, Any], None]:
    # By index, of those that have begun.
    tokens: dict[int, int] = {}

    def chunk(index: int, said: dict[str, Any]) -> dict[str, Any]:
        whole = {**form.head(form.part), **said}
        if not streaming.usage_of_each:
            return whole
        return {**whole, "usage": count_usage(runner, sequences, [index // sequences.choices], [tokens[index]])}

    async with contextlib.aclosing(run(runner, sequences)) as deltas:
        async for index, delta in deltas:
            is_first = index not in tokens
            if is_first:
                tokens[index] = 0
                for said in form.open(index):
                    yield chunk(index, said)
            tokens[index] += len(delta.token_ids)
            count = count_logprobs((*delta.logprobs, *(delta.prompt_logprobs or ())))
            choice = await render_logprobs(partial(_render, form, index, delta, is_first), count)
            if choice is not None:
                yield chunk(index, {"choices": [choice]})
    if streaming.usage:
        usage = count_usage(runner, sequences, range(len(sequences.prompts)), [*tokens.values()])
        yield {**form.head(form.part), "choices": [], "usage": usage}


async def run(runner: GeneratorRunner, sequences: Sequences) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all choices as they come, with the choice's index; to close the iterator frees all sequences.

    A search may find fewer sequences than it has choices.
    """
    arrived: asyncio.Queue[tuple[int, Delta | Exception | None]] = asyncio.Queue()
    asked = sequences.sampling.prompt_logprobs is not None

    async def follow(first: int, prompt: Sequence[int], sampling: Sampling, of_prompt: _OfPrompt) -> None:
        is_first = True
        try:
            async with contextlib.aclosing(runner.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    if is_first and asked:
                        # Only the first choice has them from the model; the others wait for them.
                        if sampling.prompt_logprobs is not None:
                            of_prompt.set_result(delta.prompt_logprobs)
                        delta = replace(delta, prompt_logprobs=await of_prompt)
                    is_first = False
                    arrived.put_nowait((first + delta.choice, delta))
            arrived.put_nowait((first, None))
        except Exception as error:
            arrived.put_nowait((first, error))

    with runner.admit():
        tasks: list[asyncio.Task[None]] = []
        for position, prompt in enumerate(sequences.prompts):
            of_prompt: _OfPrompt = asyncio.get_running_loop().create_future()
            for choice, sampling in enumerate(sequences.list_runs()):
                coroutine = follow(position * sequences.choices + choice, prompt, sampling, of_prompt)
                tasks.append(asyncio.create_task(coroutine))
        try:
            unfinished = len(tasks)
            while unfinished:
                index, delta = await arrived.get()
                if isinstance(delta, Exception):
                    raise delta
                if delta is None:
                    unfinished -= 1
                else:
                    yield index, delta
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
