"""The answers to completions and chats: the generator's choices, rendered as a whole or as a stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.responses import Response

from protocol.generated_choices import Choice, count_logprobs, render_logprobs
from protocol.http.body import encode_part, json_response
from protocol.http.rendering import note_rendering
from protocol.http.sse import stream_events
from protocol.openai.answer_ids import make_answer_id
from protocol.openai.errors import openai_error
from runners.core.generation import AcceptedRequest, Delta, GenerationRequest
from runners.core.runner import TextGenerator

_LAST_LINE = "[DONE]"


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Which chunks of a stream have the usage.

    Attributes:
        include_usage: the last chunk has the usage of all choices, and the others a null, as in OpenAI's API.
        continuous_usage: every other chunk has the usage so far.
    """

    include_usage: bool = False
    continuous_usage: bool = False


class Renderer(ABC):
    """Renders the choices of an answer; completions and chats have different objects."""

    whole_object: str
    chunk_object: str

    def __init__(self, id_prefix: str, model: str, client_id: str | None) -> None:
        self._head = {"id": make_answer_id(id_prefix, client_id), "created": int(time.time()), "model": model}

    def head(self, kind: str) -> dict[str, Any]:
        """The fields that all chunks, or the whole answer, begin with."""
        return {**self._head, "object": kind}

    @abstractmethod
    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        """A whole choice."""

    def extra_fields(self, first: Choice) -> dict[str, Any]:
        """The fields beside the choices of a whole answer.

        Args:
            first: the first choice.
        """
        return {}

    def opening(self, index: int) -> Sequence[dict[str, Any]]:
        """The chunks, without their head, before the first delta of a choice."""
        return ()

    @abstractmethod
    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        """A choice of a chunk; None where the delta adds nothing."""


# Makes the renderer of a request from the request, once it is accepted.
MakeRenderer = Callable[[AcceptedRequest], Renderer]


async def answer(
    runner: TextGenerator, request: GenerationRequest, make_renderer: MakeRenderer, settings: StreamSettings | None
) -> Response:
    """
    Args:
        settings: None for a whole answer.

    Raises:
        InputError: there would be too many log probabilities, or a prompt cannot be continued.
        LimitExceededError: there are too many prompts, outputs, or characters or tokens of prompts.
        OverloadedError: too many requests are under way, or too much waits.
    """
    if settings is not None:
        return await stream_events(_stream(runner, request, make_renderer, settings), openai_error, _LAST_LINE)
    async with runner.generate(request) as accepted:
        renderer = make_renderer(accepted)
        choices = [Choice() for _ in range(len(accepted.prompts) * accepted.choices)]
        async for index, delta in accepted.deltas:
            choices[index].add(delta)
        note_rendering()
        usage = count_generation_usage(runner, accepted.prompts, [len(choice.token_ids) for choice in choices])
        head = {**renderer.head(renderer.whole_object), "service_tier": None, "system_fingerprint": None}

        def render() -> Response:
            rendered = [
                encode_part(renderer.choice(index, choice))
                for index, choice in enumerate(choices)
                if choice.finish_reason is not None
            ]
            extras = {name: encode_part(value) for name, value in renderer.extra_fields(choices[0]).items()}
            return json_response({**head, "choices": rendered, "usage": usage, **extras})

        return await render_logprobs(render, sum(choice.logprobs_count for choice in choices))


def count_generation_usage(
    runner: TextGenerator, prompts: Iterable[Sequence[int]], output_tokens: Iterable[int]
) -> dict[str, Any]:
    """The `usage` of prompts and of choices with these numbers of tokens; `transformers` has no cache of prompts."""
    in_prompts, in_outputs = sum(map(len, prompts)), sum(output_tokens)
    usage: dict[str, Any] = {
        "prompt_tokens": in_prompts, "completion_tokens": in_outputs, "total_tokens": in_prompts + in_outputs,
    }  # fmt: skip
    return {**usage, "prompt_tokens_details": {"cached_tokens": 0}} if runner.reports_cached_tokens else usage


async def _stream(
    runner: TextGenerator, request: GenerationRequest, make_renderer: MakeRenderer, settings: StreamSettings
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The chunks of an answer; None comes first, once the request is accepted."""
    async with runner.generate(request) as accepted:
        chunks = _Chunks(runner, accepted, make_renderer(accepted), settings)
        yield None
        async for index, delta in accepted.deltas:
            for chunk in await chunks.add(index, delta):
                yield chunk
        if settings.include_usage:
            yield chunks.usage()


class _Chunks:
    """Renders the deltas of a stream, and counts the tokens so far."""

    def __init__(
        self, runner: TextGenerator, accepted: AcceptedRequest, renderer: Renderer, settings: StreamSettings
    ) -> None:
        self._runner = runner
        self._accepted = accepted
        self._renderer = renderer
        self._settings = settings
        # By index, of those choices that have begun.
        self._tokens: dict[int, int] = {}

    async def add(self, index: int, delta: Delta) -> list[dict[str, Any]]:
        """The chunks of a delta of a choice."""
        is_first = index not in self._tokens
        chunks = []
        if is_first:
            self._tokens[index] = 0
            chunks = [self._chunk(index, fields) for fields in self._renderer.opening(index)]
        self._tokens[index] += len(delta.token_ids)
        count = count_logprobs((*delta.logprobs, *(delta.prompt_logprobs or ())))
        choice = await render_logprobs(partial(self._render, index, delta, is_first), count)
        return chunks if choice is None else [*chunks, self._chunk(index, {"choices": [choice]})]

    def usage(self) -> dict[str, Any]:
        """The chunk with the usage of all choices."""
        usage = count_generation_usage(self._runner, self._accepted.prompts, self._tokens.values())
        return {**self._renderer.head(self._renderer.chunk_object), "choices": [], "usage": usage}

    def _render(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        choice = self._renderer.delta(index, delta, is_first)
        if choice is not None and choice.get("logprobs"):
            return {**choice, "logprobs": encode_part(choice["logprobs"])}
        return choice

    def _chunk(self, index: int, fields: dict[str, Any]) -> dict[str, Any]:
        chunk = {**self._renderer.head(self._renderer.chunk_object), **fields}
        if not self._settings.include_usage:
            return chunk
        if not self._settings.continuous_usage:
            return {**chunk, "usage": None}
        prompt = self._accepted.prompts[self._accepted.prompt_of(index)]
        return {**chunk, "usage": count_generation_usage(self._runner, [prompt], [self._tokens[index]])}
