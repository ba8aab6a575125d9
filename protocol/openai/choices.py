"""The continuations that a request asks for: run together, and answered at once or as a stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from protocol.body import json_response
from protocol.calls import until_disconnect
from protocol.errors import openai_error
from protocol.request_id import printable, request_id
from protocol.sse import stream_events
from runners.generation import Delta, FinishReason, Sampling, TokenLogprobs
from runners.generator.runner import GeneratorRunner

_LAST_LINE = "[DONE]"


@dataclass(frozen=True, slots=True)
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

    def list_runs(self) -> list[tuple[int, Sequence[int], Sampling]]:
        """The index of the first choice of each, its prompt and sampling; the choices of a seed differ."""
        if self.sampling.beam_search is not None:
            return [(i * self.choices, prompt, self.sampling) for i, prompt in enumerate(self.prompts)]
        seed = self.sampling.seed
        return [
            (i * self.choices + j, prompt, replace(self.sampling, seed=None if seed is None else seed + j))
            for i, prompt in enumerate(self.prompts)
            for j in range(self.choices)
        ]


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

    @abstractmethod
    def extras(self, first: Choice) -> dict[str, Any]:
        """What stands beside the choices of a whole answer."""

    @abstractmethod
    def open(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks, but for their head, that come before a choice's first part."""

    @abstractmethod
    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        """A part of a choice; None where there is nothing to say."""


async def answer(
    request: Request, runner: GeneratorRunner, form: Form, sequences: Sequences, streaming: Streaming | None
) -> Response:
    """
    Args:
        streaming: None for a whole answer.
    """
    if streaming is not None:
        return await stream_events(_stream(runner, form, sequences, streaming), openai_error, _LAST_LINE)
    choices = await until_disconnect(request, _complete(runner, sequences))
    usage = count_usage(runner, sequences, range(len(sequences.prompts)), [len(each.token_ids) for each in choices])
    answered = [form.choice(index, choice) for index, choice in enumerate(choices)]
    head = {**form.head(form.whole), "service_tier": None, "system_fingerprint": None}
    return json_response({**head, "choices": answered, "usage": usage, **form.extras(choices[0])})


def count_usage(
    runner: GeneratorRunner, sequences: Sequences, prompts: Sequence[int], tokens: Sequence[int]
) -> dict[str, Any]:
    """The `usage` of some prompts and of choices of so many tokens; there is no cache of prompts."""
    given, made = sum(len(sequences.prompts[prompt]) for prompt in prompts), sum(tokens)
    usage: dict[str, Any] = {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made}
    return {**usage, "prompt_tokens_details": {"cached_tokens": 0}} if runner.tells_cached_tokens else usage


async def _complete(runner: GeneratorRunner, sequences: Sequences) -> list[Choice]:
    choices = [Choice() for _ in range(sequences.count)]
    async with contextlib.aclosing(run(runner, sequences)) as deltas:
        async for index, delta in deltas:
            choices[index].add(delta)
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
                for said in form.open(index, delta):
                    yield chunk(index, said)
            tokens[index] += len(delta.token_ids)
            if (choice := form.delta(index, delta, is_first)) is not None:
                yield chunk(index, {"choices": [choice]})
    if streaming.usage:
        usage = count_usage(runner, sequences, range(len(sequences.prompts)), [*tokens.values()])
        yield {**form.head(form.part), "choices": [], "usage": usage}


async def run(runner: GeneratorRunner, sequences: Sequences) -> AsyncGenerator[tuple[int, Delta], None]:
    """The deltas of all choices as they come, with the choice's index; to close the iterator frees all sequences."""
    arrived: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue()

    async def follow(first: int, prompt: Sequence[int], sampling: Sampling) -> None:
        try:
            async with contextlib.aclosing(runner.generate(prompt, sampling)) as deltas:
                async for delta in deltas:
                    arrived.put_nowait((first + delta.choice, delta))
        except Exception as error:
            arrived.put_nowait((first, error))

    with runner.admit():
        tasks = [asyncio.create_task(follow(*each)) for each in sequences.list_runs()]
        try:
            unfinished = sequences.count
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
