"""The sequences of one request, run side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter

from runners.core.admission import Admitted
from runners.core.errors import InputError
from runners.core.generation import MAX_ALLOWED_TOKENS, Delta, Sampling, TokenLogprobs
from runners.core.request_record import current_record
from runners.generator.engine import Engine

# Most log probabilities of a request: each takes 7 us, and 80 bytes of an answer.
_MAX_LOGPROBS = 2**20
# Sequences that are started before other tasks of the event loop run: some 5 ms.
_STARTED_AT_ONCE = 16

_PromptLogprobs = asyncio.Future[tuple[TokenLogprobs | None, ...] | None]
DescribeError = Callable[[int, Exception], Exception]


@dataclass(frozen=True)
class Sequences:
    """Tokenized prompts, and how each is continued: a sequence for each choice, or one beam search for all choices."""

    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    choices: int = 1

    @property
    def count(self) -> int:
        """Number of choices of all prompts."""
        return len(self.prompts) * self.choices

    @property
    def tokens(self) -> int:
        """Number of tokens of all prompts, each counted once for each sequence."""
        return sum(map(len, self.prompts)) * self._sequences_a_prompt

    @property
    def logprobs(self) -> int:
        """Number of log probabilities; those of outputs whose length the request does not limit are not counted."""
        return self._count_logprobs(self._max_output_tokens)

    def split(self) -> Iterator[tuple[int, int, Sampling]]:
        """The sequences: the index of each one's first choice, the position of its prompt, and its sampling.

        Choices of a seeded request get different seeds; only the first choice computes the log probabilities of the
        prompt.
        """
        sampling = self.sampling
        others = replace(sampling, prompt_logprobs=None)
        for position in range(len(self.prompts)):
            first = position * self.choices
            yield first, position, sampling
            for offset in range(1, self._sequences_a_prompt):
                seed = sampling.seed
                yield first + offset, position, others if seed is None else replace(others, seed=seed + offset)

    def check_request(self) -> None:
        """
        Raises:
            InputError: the request asks for too many log probabilities, or has too many allowed tokens in all choices
                together.
        """
        sampling = self.sampling
        if (allowed := len(sampling.allowed_token_ids or ()) * self.count) > MAX_ALLOWED_TOKENS:
            raise InputError(
                f"allowed_token_ids has {allowed} tokens for {self.count} choices; {MAX_ALLOWED_TOKENS} are the most",
                "allowed_token_ids",
            )
        self.check_logprobs(self._max_output_tokens)

    def check_logprobs(self, tokens: int) -> None:
        """
        Args:
            tokens: number of tokens of all outputs.

        Raises:
            InputError: they have too many log probabilities.
        """
        if (count := self._count_logprobs(tokens)) > _MAX_LOGPROBS:
            raise InputError(
                f"{count} log probabilities are more than {_MAX_LOGPROBS}: ask for fewer choices, tokens or logprobs",
                "logprobs" if self._logprobs_a_token else "prompt_logprobs",
            )

    def _count_logprobs(self, tokens: int) -> int:
        return tokens * self._logprobs_a_token + self._prompt_logprobs

    @property
    def _sequences_a_prompt(self) -> int:
        return 1 if self.sampling.beam_search is not None else self.choices

    @property
    def _max_output_tokens(self) -> int:
        """Most tokens of all outputs; 0 where the request does not say."""
        sampling = self.sampling
        limit = sampling.default_tokens if sampling.max_tokens is None else sampling.max_tokens
        return self.count * (limit or 0)

    @property
    def _logprobs_a_token(self) -> int:
        sampling = self.sampling
        return 0 if sampling.logprobs is None else max(sampling.logprobs, len(sampling.logprob_token_ids)) + 1

    @cached_property
    def _prompt_logprobs(self) -> int:
        """Number of log probabilities of prompts: each choice repeats those of its prompt."""
        top = self.sampling.prompt_logprobs
        return 0 if top is None else sum(map(len, self.prompts)) * self.choices * (top + 1)


def keep_error(_: int, error: Exception) -> Exception:
    """Return the error unchanged."""
    return error


@contextlib.asynccontextmanager
async def run(
    engine: Engine, sequences: Sequences, admitted: Admitted, describe_error: DescribeError = keep_error
) -> AsyncIterator[AsyncIterator[tuple[int, Delta]]]:
    """Run sequences side by side; the context begins once all of them are accepted, and its end frees them.

    Args:
        describe_error: takes the index of a choice and the choice's error, and returns the error to raise.

    Returns:
        The deltas of all choices as they come, with the choice's index. Beam search may find fewer sequences than
        there are choices.

    Raises:
        RunnerError: a sequence has failed; also while the deltas are read.
        OverloadedError: too many tokens wait.
    """
    admitted.queue(sequences.tokens, sequences.logprobs)
    running = _RunningSequences(engine, sequences, admitted, describe_error)
    try:
        await running.start()
        await running.wait_until_accepted()
        yield running.deltas()
    finally:
        await running.cancel()


async def limit_logprobs(
    deltas: AsyncIterator[tuple[int, Delta]], sequences: Sequences
) -> AsyncIterator[tuple[int, Delta]]:
    """The same deltas.

    Raises:
        InputError: all deltas together have too many log probabilities.
    """
    tokens = 0
    async for index, delta in deltas:
        tokens += len(delta.token_ids)
        sequences.check_logprobs(tokens)
        yield index, delta


class _Queued:
    """A sequence was accepted and waits for the model."""


class _RunningSequences:
    """A task for each sequence, and the queue of the items that the tasks produce."""

    def __init__(self, engine: Engine, sequences: Sequences, admitted: Admitted, describe_error: DescribeError) -> None:
        self._engine = engine
        self._sequences = sequences
        self._admitted = admitted
        self._describe_error = describe_error
        self._tasks: list[asyncio.Task[None]] = []
        # By choice: a delta, the error of its sequence, None at its end, or that the sequence is queued.
        self._arrived: asyncio.Queue[tuple[int, Delta | Exception | _Queued | None]] = asyncio.Queue()
        self._early: list[tuple[int, Delta]] = []
        self._queued = 0
        self._finished = 0
        admitted.on_queued = self._count_queued

    async def start(self) -> None:
        prompt_logprobs: dict[int, _PromptLogprobs] = {}
        for index, position, sampling in self._sequences.split():
            if position not in prompt_logprobs:
                prompt_logprobs[position] = asyncio.get_running_loop().create_future()
            prompt = self._sequences.prompts[position]
            follow = self._follow(index, prompt, sampling, prompt_logprobs[position])
            self._tasks.append(asyncio.create_task(follow))
            if not len(self._tasks) % _STARTED_AT_ONCE:
                await asyncio.sleep(0)

    async def wait_until_accepted(self) -> None:
        while self._finished < len(self._tasks):
            if (arrived := await self._next()) is not None:
                self._early.append(arrived)
            if self._queued == len(self._tasks):
                return

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        for arrived in self._early:
            yield arrived
        while self._finished < len(self._tasks):
            if (delta := await self._next()) is not None:
                yield delta

    async def cancel(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _next(self) -> tuple[int, Delta] | None:
        """What has arrived next, if it is a delta."""
        index, item = await self._arrived.get()
        if isinstance(item, Exception):
            raise self._describe_error(index, item)
        if isinstance(item, Delta):
            return index, item
        if item is None:
            self._finished += 1
        return None

    async def _follow(
        self, first: int, prompt: Sequence[int], sampling: Sampling, prompt_logprobs: _PromptLogprobs
    ) -> None:
        """Run a sequence.

        Args:
            first: the index of its first choice.
            prompt_logprobs: log probabilities of the prompt, which only its first sequence gets from the model.
        """
        shares_logprobs = self._sequences.sampling.prompt_logprobs is not None
        is_first = True
        record = None if self._engine.notes_records else current_record.get()
        try:
            async with contextlib.aclosing(self._engine.generate(prompt, sampling, self._admitted)) as deltas:
                async for delta in deltas:
                    if record is not None and delta.token_ids:
                        record.computed = perf_counter()
                        record.first_token = record.first_token or record.computed
                        record.generation_tokens += len(delta.token_ids)
                    if record is not None and delta.finish_reason is not None:
                        record.note_finish(delta.finish_reason)
                    if is_first and shares_logprobs:
                        if sampling.prompt_logprobs is not None:
                            prompt_logprobs.set_result(delta.prompt_logprobs)
                        delta = replace(delta, prompt_logprobs=await prompt_logprobs)
                    is_first = False
                    self._arrived.put_nowait((first + delta.choice, delta))
            self._arrived.put_nowait((first, None))
        except Exception as error:
            self._arrived.put_nowait((first, error))

    def _count_queued(self) -> None:
        # Of this server's own engine; vLLM's notes it when it begins.
        if (record := current_record.get()) is not None:
            record.queued = record.queued or perf_counter()
        self._queued += 1
        self._arrived.put_nowait((0, _Queued()))
