"""Batches that fail: no memory for them, or a GPU that has failed; emulated by a forward pass that raises errors."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import torch

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.errors import EngineDeadError
from runners.core.predictions import Prediction, TextInput
from runners.encoder.packing import PackedForward
from runners.encoder.runner import EncoderRunner
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks.encoder_task import EncoderTask
from tests.conftest import ModelFolder
from tests.waiting import eventually

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

    def compute_scores(*_: Any) -> Any:
        raise torch.AcceleratorError(FAULT)

    monkeypatch.setattr(EncoderTask, "compute_scores", compute_scores)


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


@pytest.mark.parametrize("fail", [fail_in_forward, fail_in_copies, fail_as_cublas])
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
    assert not runner.loaded


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
