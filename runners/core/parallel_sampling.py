"""The outputs that one request asks for, run side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from runners.core.admission import Admitted
from runners.core.errors import InputError
from runners.core.generation import MAX_ALLOWED_TOKENS, Delta, Sampling, TokenLogprobs

# What one body may ask for: 7 us, and 80 bytes of an answer, each.
_MAX_LOGPROBS = 2**20
# Outputs that begin before others have their turn on the event loop: some 5 ms.
_STARTED_AT_ONCE = 16

_OfPrompt = asyncio.Future[tuple[TokenLogprobs | None, ...] | None]


class Generates(Protocol):
    """What runs a sequence: an engine."""

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt."""


@dataclass(frozen=True)
class Sequences:
    """Prompts, and how each of their choices is continued: one sequence each, or all of a prompt's by beam search."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    choices: int = 1

    @property
    def count(self) -> int:
        """How many choices there are in all."""
        return len(self.prompts) * self.choices

    @property
    def tokens(self) -> int:
        """Of all prompts, once for each sequence."""
        runs = 1 if self.sampling.beam_search is not None else self.choices
        return sum(map(len, self.prompts)) * runs

    def prompt_of(self, index: int) -> Sequence[int]:
        return self.prompts[index // self.choices]

    def runs(self) -> Iterator[tuple[int, int, Sampling]]:
        """Each sequence: the index of its first choice, that of its prompt, and how it is sampled.

        The choices of a seed differ, and only the first computes the prompt's log probabilities.
        """
        sampling = self.sampling
        others = replace(sampling, prompt_logprobs=None)
        for position in range(len(self.prompts)):
            first = position * self.choices
            yield first, position, sampling
            for j in range(1, 1 if sampling.beam_search is not None else self.choices):
                seed = sampling.seed
                yield first + j, position, others if seed is None else replace(others, seed=seed + j)

    def check_asked(self) -> None:
        """
        Raises:
            InputError: too many log probabilities are asked for, as far as the request says how many, or too many
                allowed tokens of all choices together.
        """
        sampling = self.sampling
        if (allowed := len(sampling.allowed_token_ids or ()) * self.count) > MAX_ALLOWED_TOKENS:
            raise InputError(
                f"allowed_token_ids has {allowed} tokens for {self.count} choices; {MAX_ALLOWED_TOKENS} are the most",
                "allowed_token_ids",
            )
        self.check_logprobs(self._most_tokens)

    def check_logprobs(self, tokens: int) -> None:
        """
        Args:
            tokens: of all outputs.

        Raises:
            InputError: there are too many log probabilities.
        """
        if (count := self._count_logprobs(tokens)) > _MAX_LOGPROBS:
            raise InputError(
                f"{count} log probabilities are more than {_MAX_LOGPROBS}: ask for fewer choices, tokens or logprobs",
                "logprobs" if self._width else "prompt_logprobs",
            )

    @property
    def logprobs(self) -> int:
        """How many log probabilities are asked for, as far as the request says how many."""
        return self._count_logprobs(self._most_tokens)

    def _count_logprobs(self, tokens: int) -> int:
        return tokens * self._width + self._of_prompts

    @property
    def _most_tokens(self) -> int:
        """Of all outputs; 0 where the request does not say."""
        sampling = self.sampling
        most = sampling.default_tokens if sampling.max_tokens is None else sampling.max_tokens
        return self.count * (most or 0)

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


def _unchanged(_: int, error: Exception) -> Exception:
    return error


async def run(
    engine: Generates,
    sequences: Sequences,
    admitted: Admitted,
    describe_error: Callable[[int, Exception], Exception] = _unchanged,
) -> AsyncGenerator[tuple[int, Delta] | None, None]:
    """The deltas of all choices as they come, with the choice's index; to close the iterator frees all sequences.

    None comes first, once all sequences are accepted and wait for the model. A search may find fewer sequences than it
    has choices.

    Args:
        describe_error: what is raised for an error of the choice of an index.

    Raises:
        RunnerError: a sequence has failed.
        OverloadedError: too many tokens wait.
    """
    admitted.queue(sequences.tokens, sequences.logprobs)
    follower = _Follower(engine, admitted, sequences.sampling.prompt_logprobs is not None)
    tasks: list[asyncio.Task[None]] = []
    of_prompts: dict[int, _OfPrompt] = {}
    try:
        for index, position, sampling in sequences.runs():
            if position not in of_prompts:
                of_prompts[position] = asyncio.get_running_loop().create_future()
            coroutine = follower.follow(index, sequences.prompts[position], sampling, of_prompts[position])
            tasks.append(asyncio.create_task(coroutine))
            if not len(tasks) % _STARTED_AT_ONCE:
                await asyncio.sleep(0)
        early: list[tuple[int, Delta]] = []
        unfinished = len(tasks)
        accepted = False
        while unfinished:
            index, item = await follower.arrived.get()
            if isinstance(item, Exception):
                raise describe_error(index, item)
            if not accepted and follower.queued == len(tasks):
                accepted = True
                yield None
                for pair in early:
                    yield pair
            if item is None:
                unfinished -= 1
            elif isinstance(item, Delta):
                if accepted:
                    yield index, item
                else:
                    early.append((index, item))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Queued:
    """A sequence waits for the model."""


class _Follower:
    """Gathers what the sequences of a request make.

    Attributes:
        arrived: a choice's index with a delta, its error, None at its end, or that a sequence is queued.
        queued: how many sequences have been accepted.
    """

    def __init__(self, engine: Generates, admitted: Admitted, asks_of_prompts: bool) -> None:
        self.arrived: asyncio.Queue[tuple[int, Delta | Exception | _Queued | None]] = asyncio.Queue()
        self.queued = 0
        self._engine = engine
        self._admitted = admitted
        self._asks_of_prompts = asks_of_prompts
        admitted.on_queued = self._note_queued

    async def follow(self, first: int, prompt: Sequence[int], sampling: Sampling, of_prompt: _OfPrompt) -> None:
        """Run a sequence.

        Args:
            first: the index of its first choice.
            of_prompt: log probabilities of the prompt: only the first choice has them from the model.
        """
        is_first = True
        try:
            async with contextlib.aclosing(self._engine.generate(prompt, sampling, self._admitted)) as deltas:
                async for delta in deltas:
                    if is_first and self._asks_of_prompts:
                        if sampling.prompt_logprobs is not None:
                            of_prompt.set_result(delta.prompt_logprobs)
                        delta = replace(delta, prompt_logprobs=await of_prompt)
                    is_first = False
                    self.arrived.put_nowait((first + delta.choice, delta))
            self.arrived.put_nowait((first, None))
        except Exception as error:
            self.arrived.put_nowait((first, error))

    def _note_queued(self) -> None:
        self.queued += 1
        self.arrived.put_nowait((0, _Queued()))
