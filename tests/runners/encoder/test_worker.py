"""Batches on a GPU: the next one is launched before the results of one are read, and some fail.

A GPU is emulated: by results that are pending until they are read, and by a forward pass that raises errors.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.errors import EngineDeadError, ModelNotReadyError
from runners.core.predictions import Prediction, TextInput
from runners.encoder.packing import PackedForward
from runners.encoder.queue import BatchQueue
from runners.encoder.runner import EncoderRunner
from runners.encoder.sequences import TokenizedText
from runners.encoder.transfers import PendingArray
from tests.conftest import ModelFolder
from tests.waiting import eventually, wait_until

TEXTS = [f"text number {number} {'word ' * (number % 7)}" for number in range(40)]
BUDGET = 256
FAULT = "CUDA error: device-side assert triggered"


class Activation:
    """Something large that a forward pass holds when memory runs out."""


class LimitedMemory:
    """The forward pass of a device with memory for a number of tokens.

    Attributes:
        tokens: those of each batch, in order.
        held: how many activations of failed batches were alive when a batch began.
    """

    def __init__(self, most_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most_tokens = most_tokens
        self.tokens: list[int] = []
        self.held: list[int] = []
        self._alive: list[weakref.ref[Activation]] = []
        run = PackedForward.run

        def run_within(forward: PackedForward, texts: Sequence[TokenizedText]) -> tuple[torch.Tensor, list[int]]:
            self.tokens.append(sum(len(text.input_ids) for text in texts))
            self.held.append(sum(each() is not None for each in self._alive))
            activation = Activation()
            self._alive.append(weakref.ref(activation))
            if self.tokens[-1] > self.most_tokens:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return run(forward, texts)

        monkeypatch.setattr(PackedForward, "run", run_within)


@pytest.fixture
async def runner(model_folder: ModelFolder) -> AsyncIterator[EncoderRunner]:
    folder = model_folder("bert", "sequence_classification")
    runner = EncoderRunner(Arguments(model_dir=str(folder), max_batch_tokens=BUDGET), None, DeviceThread())
    await runner.load()
    yield runner
    await asyncio.to_thread(runner.close)


async def classify(runner: EncoderRunner, texts: Sequence[str] = TEXTS) -> list[Prediction]:
    return await runner.infer([TextInput(text) for text in texts], runner.default_options)


async def test_the_halves_of_a_batch_have_its_memory(runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = await classify(runner)
    memory = LimitedMemory(BUDGET // 2, monkeypatch)
    assert await classify(runner) == expected
    assert max(memory.tokens) > memory.most_tokens, "no batch has failed"
    assert set(memory.held) == {0}


async def test_the_budget_is_halved_for_good(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = LimitedMemory(BUDGET // 4, monkeypatch)
    with caplog.at_level(logging.WARNING):
        await classify(runner)
        await classify(runner)
    assert runner.max_batch_tokens == BUDGET // 4
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(": ")[2] for line in lines] == [
        "from now on batches have at most 128 tokens, not 256; set --max_batch_tokens=128 to start so",
        "from now on batches have at most 64 tokens, not 128; set --max_batch_tokens=64 to start so",
    ]
    assert all(line.startswith("memory of cpu has run out again, in a batch of ") for line in lines)
    memory.tokens.clear()
    await classify(runner, TEXTS * 2)
    assert max(memory.tokens) <= BUDGET // 4


async def test_memory_that_runs_out_once_changes_nothing(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = LimitedMemory(BUDGET, monkeypatch)
    memory.most_tokens = 20
    failing = asyncio.create_task(classify(runner, ["some words"] * 8))
    await eventually(lambda: memory.tokens)
    memory.most_tokens = BUDGET
    await failing
    assert runner.max_batch_tokens == BUDGET


async def test_a_text_without_memory_fails_alone(runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    LimitedMemory(30, monkeypatch)
    long, short = await asyncio.gather(
        classify(runner, ["word " * 60]), classify(runner, ["a text"]), return_exceptions=True
    )
    assert isinstance(long, torch.OutOfMemoryError)
    assert isinstance(short, list)
    assert runner.max_batch_tokens == BUDGET, "a text alone cannot be made smaller"
    assert runner.ready


def fail_in_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> Any:
        raise torch.AcceleratorError(FAULT)

    monkeypatch.setattr(PackedForward, "run", run)


def fail_in_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host waits for the GPU."""

    def wait(_: PendingArray) -> Any:
        raise torch.AcceleratorError(FAULT)

    monkeypatch.setattr(PendingArray, "wait", wait)


def fail_while_the_next_batch_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both batches end with the error, and so does what waits."""
    monkeypatch.setattr(PendingArray, "is_pending", True)
    fail_in_copies(monkeypatch)


def fail_as_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of another class, after which an operator on the GPU fails."""

    def run(forward: PackedForward, _: Any) -> Any:
        model = forward._inputs.model
        monkeypatch.setattr(type(model), "device", torch.device("cuda", 0))
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED")

    def ones(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError(FAULT)

    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(PackedForward, "run", run)


@pytest.mark.parametrize(
    "fail", [fail_in_forward, fail_in_copies, fail_while_the_next_batch_is_launched, fail_as_cublas]
)
async def test_a_failed_device_is_never_ready(
    fail: Any, runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(monkeypatch)
    # More than a batch, so that some texts wait in the queue.
    answers = await asyncio.gather(*(classify(runner, [text]) for text in TEXTS * 2), return_exceptions=True)
    assert {(type(answer), str(answer)) for answer in answers} == {
        (EngineDeadError, "the engine has died: the server stops")
    }
    await eventually(lambda: runner.failed)
    assert not runner.ready
    await eventually(lambda: not runner.loaded)


async def test_a_device_that_fails_in_a_load_is_never_ready(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(*_: Any) -> Any:
        raise torch.AcceleratorError(FAULT)

    monkeypatch.setattr("runners.encoder.loader.check_dtype", check)
    device = DeviceThread()
    folder = model_folder("bert", "sequence_classification")
    runner = EncoderRunner(Arguments(model_dir=str(folder)), None, device)
    with pytest.raises(EngineDeadError, match="the device has failed: CUDA error: device-side assert triggered"):
        await runner.load()
    assert runner.failed
    assert device.failure == FAULT
    with pytest.raises(EngineDeadError):
        await runner.load()


async def test_other_errors_leave_the_model_ready(runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run = PackedForward.run

    def fail_once(forward: PackedForward, texts: Sequence[TokenizedText]) -> tuple[torch.Tensor, list[int]]:
        monkeypatch.setattr(PackedForward, "run", run)
        raise RuntimeError("a kernel refuses this shape")

    expected = await classify(runner)
    monkeypatch.setattr(PackedForward, "run", fail_once)
    assert await classify(runner) == expected
    assert runner.ready


@dataclass
class Launches:
    """What happens to batches, in order: (event, the batch's number)."""

    events: list[tuple[str, int]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Lets results be pending until they are read."""
    launches = Launches([])
    start, wait = PendingArray.__init__, PendingArray.wait
    numbers: dict[PendingArray, int] = {}

    def launch(array: PendingArray, tensor: torch.Tensor) -> None:
        start(array, tensor)
        numbers[array] = len(numbers)
        launches.events.append(("launched", numbers[array]))

    def read(array: PendingArray) -> Any:
        launches.events.append(("read", numbers[array]))
        return wait(array)

    monkeypatch.setattr(PendingArray, "__init__", launch)
    monkeypatch.setattr(PendingArray, "wait", read)
    monkeypatch.setattr(PendingArray, "is_pending", True)
    return launches


async def test_the_next_batch_is_launched_before_results_are_read(
    runner: EncoderRunner, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [await classify(runner, [text]) for text in TEXTS]
    # A batch with nothing behind it is read at once.
    assert launches.events == [(event, number) for number in range(len(TEXTS)) for event in ("launched", "read")]
    launches.events.clear()
    texts, queue, run = TEXTS * 3, runner._model().queue, PackedForward.run

    def run_with_all_waiting(forward: PackedForward, texts_: Sequence[TokenizedText]) -> tuple[torch.Tensor, list[int]]:
        monkeypatch.setattr(PackedForward, "run", run)
        wait_until(lambda: queue._waiting_texts + queue._running_texts == len(texts))
        return run(forward, texts_)

    monkeypatch.setattr(PackedForward, "run", run_with_all_waiting)
    assert await classify(runner, texts) == [prediction for [prediction] in expected] * 3
    order = [number for event, number in launches.events if event == "read"]
    assert order == sorted(order)
    assert len(order) > 2
    for first, second in pairwise(order):
        assert launches.events.index(("launched", second)) < launches.events.index(("read", first))


async def test_batches_that_fail_leave_the_others_in_order(
    runner: EncoderRunner, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await classify(runner)
    memory = LimitedMemory(BUDGET // 2, monkeypatch)
    assert await classify(runner) == expected
    assert max(memory.tokens) > memory.most_tokens, "no batch has failed"


async def test_a_closed_model_reads_the_batch_that_is_launched(
    model_folder: ModelFolder, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its results have been computed; what waits is refused."""
    folder = model_folder("bert", "sequence_classification")
    runner = EncoderRunner(Arguments(model_dir=str(folder), max_batch_tokens=BUDGET), None, DeviceThread())
    await runner.load()
    launched, closing = threading.Event(), threading.Event()
    run = PackedForward.run

    def run_first(forward: PackedForward, texts: Sequence[TokenizedText]) -> tuple[torch.Tensor, list[int]]:
        launched.set()
        assert closing.wait(30)
        return run(forward, texts)

    monkeypatch.setattr(PackedForward, "run", run_first)
    launches.events.clear()
    answers = asyncio.gather(*(classify(runner, [text * 20]) for text in TEXTS), return_exceptions=True)
    assert await asyncio.to_thread(launched.wait, 30)
    await eventually(lambda: runner._model().queue.has_waiting)
    closed = asyncio.create_task(asyncio.to_thread(runner.close))
    await eventually(lambda: not runner.loaded)
    closing.set()
    await closed
    found = await answers
    assert launches.events == [("launched", launches.events[0][1]), ("read", launches.events[0][1])]
    assert {type(answer) for answer in found} == {list, ModelNotReadyError}


async def test_the_span_of_a_batch_ends_with_its_results(
    runner: EncoderRunner, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a tracer has set for a batch holds while that batch is launched and read, and not for another."""
    current: ContextVar[int] = ContextVar("current")
    numbers = itertools.count()
    seen: list[tuple[str, int]] = []

    @contextmanager
    def trace(_: Any) -> Iterator[None]:
        token = current.set(number := next(numbers))
        yield
        assert current.get() == number
        current.reset(token)
        seen.append(("ended", number))

    wait = PendingArray.wait

    def read(array: PendingArray) -> Any:
        seen.append(("read", current.get()))
        return wait(array)

    monkeypatch.setattr("runners.encoder.worker.trace_batch", trace)
    monkeypatch.setattr(PendingArray, "wait", read)
    await classify(runner, TEXTS * 5)
    batches = next(numbers)
    assert batches > 2
    # The answers of the last one are delivered before its span ends.
    await eventually(lambda: len(seen) == 2 * batches)
    assert seen == [(event, number) for number in range(batches) for event in ("read", "ended")]


async def test_the_end_of_a_model_refuses_the_batch_that_is_launched(
    runner: EncoderRunner, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error beside all batches, which ends the model and not the server."""

    def fail(*_: Any) -> None:
        if runner._worker is not None and runner._worker._launched is not None:
            raise RuntimeError("a defect")

    expected = await classify(runner)
    monkeypatch.setattr(BatchQueue, "record_throughput", fail)
    answers = await asyncio.gather(*(classify(runner, [text]) for text in TEXTS * 4), return_exceptions=True)
    assert {type(answer) for answer in answers} == {list, ModelNotReadyError}
    assert next(answer for answer in answers if isinstance(answer, list)) == expected[:1]
    assert not runner.failed
    await eventually(lambda: not runner.loaded)
    last = max(number for event, number in launches.events if event == "launched")
    assert ("read", last) not in launches.events, "the batch beside the one that failed was read"
