"""vLLM's engine, which notes in the record of each request what vLLM does for it, and since when it owes an output.

vLLM's own layer for OpenAI's API calls the engine directly.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from runners.core.request_record import RequestRecord, current_record

if TYPE_CHECKING:
    from vllm.outputs import PoolingRequestOutput, RequestOutput
    from vllm.sampling_params import SamplingParams

Output = TypeVar("Output")


class OwedOutputs:
    """Since when the engine has given no output at all although calls wait for one.

    A call whose reader is slow does not wait. The engine's outputs are more than those of calls: a call may get one at
    its end only.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._since = 0.0

    @property
    def since(self) -> float | None:
        """By `time.perf_counter`; None if no call waits."""
        return self._since if self._waiting else None

    async def follow(self, outputs: AsyncGenerator[Output, None]) -> AsyncGenerator[Output, None]:
        """The outputs of a call, which waits for each; they are closed with these."""
        async with contextlib.aclosing(outputs):
            while True:
                if not self._waiting:
                    self._since = perf_counter()
                self._waiting += 1
                try:
                    output = await anext(outputs)
                except StopAsyncIteration:
                    return
                finally:
                    self._waiting -= 1
                yield output

    def note_each(self, get: Callable[[], Awaitable[Output]]) -> Callable[[], Awaitable[Output]]:
        """The function that gets the engine's next output, which notes when that came."""

        async def get_next() -> Output:
            output = await get()
            self._since = perf_counter()
            return output

        return get_next


class RecordingLLM(AsyncLLM):
    """An AsyncLLM whose calls fill the record of the running request.

    Attributes:
        owed_outputs: what the watchdog asks.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.owed_outputs = OwedOutputs()
        self.engine_core.get_output_async = self.owed_outputs.note_each(self.engine_core.get_output_async)

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        record = _begin_text()
        notes = None if record is None else _OutputNotes(record, sampling_params.output_kind == RequestOutputKind.DELTA)
        outputs = self.owed_outputs.follow(super().generate(prompt, sampling_params, request_id, **options))
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                if notes is not None:
                    notes.add(output)
                yield output

    async def encode(self, *arguments: Any, **options: Any) -> AsyncGenerator[PoolingRequestOutput, None]:
        record = _begin_text()
        async with contextlib.aclosing(self.owed_outputs.follow(super().encode(*arguments, **options))) as outputs:
            async for output in outputs:
                if record is not None and output.finished:
                    record.tokens += len(output.prompt_token_ids)
                    record.computed = perf_counter()
                yield output


def _begin_text() -> RequestRecord | None:
    """Note that vLLM gets a prompt or a text, which is tokenized."""
    record = current_record.get()
    if record is not None:
        record.texts += 1
        record.queued = record.queued or perf_counter()
    return record


class _OutputNotes:
    """Notes the outputs of one prompt in a record."""

    def __init__(self, record: RequestRecord, is_delta: bool) -> None:
        """
        Args:
            is_delta: whether each output has only the tokens since the one before it.
        """
        self._record = record
        self._is_delta = is_delta
        self._is_first = True
        # By the index of an output of the prompt.
        self._tokens: dict[int, int] = {}

    def add(self, output: RequestOutput) -> None:
        record = self._record
        if self._is_first:
            self._is_first = False
            record.prompt_tokens += len(output.prompt_token_ids or ())
        new = 0
        for each in output.outputs:
            count = len(each.token_ids)
            new += count if self._is_delta else count - self._tokens.get(each.index, 0)
            self._tokens[each.index] = count
            if each.finish_reason is not None:
                record.note_finish(each.finish_reason)
        record.generation_tokens += new
        record.computed = perf_counter()
        # The engine's clock is that of perf_counter, on Linux; without statistics it tells nothing.
        if (metrics := output.metrics) is not None:
            record.computing = record.computing or metrics.scheduled_ts
            record.first_token = record.first_token or metrics.first_token_ts
        if new:
            record.first_token = record.first_token or record.computed
