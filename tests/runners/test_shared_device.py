"""Two encoders and a generator in one device thread: each answers as alone, and none waits for long."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.errors import EngineDeadError
from runners.core.generation import GenerationRequest, Sampling
from runners.core.predictions import LOGITS, TextInput
from runners.encoder import forward_selection
from runners.encoder.packing import PackedForward
from runners.encoder.runner import EncoderRunner
from runners.generator.decoder import Decoder
from runners.generator.runner import GeneratorRunner
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder, ModelFolder
from tests.waiting import eventually

Runners = tuple[EncoderRunner, EncoderRunner, GeneratorRunner]
MakeRunners = Callable[[DeviceThread | None], Runners]

TEXTS = [f"text number {number} {'word ' * (number % 7)}" for number in range(40)]
PROMPTS = ["Return", "Open the file and return its contents", "A"]


@pytest.fixture
def make_runners(model_folder: ModelFolder, generator_folder: GeneratorFolder) -> MakeRunners:
    folders = [model_folder("bert", "sequence_classification"), model_folder("roberta", "token_classification")]
    generator = str(generator_folder("llama"))

    def make(device: DeviceThread | None) -> Runners:
        first, second = (
            EncoderRunner(Arguments(model_dir=str(folder), model_name=name, max_batch_tokens=64), None, device)
            for name, folder in zip(("first", "second"), folders, strict=True)
        )
        arguments = Arguments(model_dir=generator, model_name="generator", backend="huggingface")
        return first, second, GeneratorRunner(arguments, device)

    return make


@asynccontextmanager
async def loaded(runners: Runners) -> AsyncIterator[Runners]:
    for runner in runners:
        await runner.load()
    yield runners
    for runner in runners:
        await asyncio.to_thread(runner.close)


async def classify(runner: EncoderRunner, texts: Sequence[str] = TEXTS) -> list[bytes]:
    """The bits of the logits of each text."""
    options = replace(runner.default_options, outputs=frozenset({LOGITS}))
    answers = await asyncio.gather(*(runner.infer([TextInput(text)], options) for text in texts))
    return [np.asarray(answer[0].outputs[LOGITS]).tobytes() for answer in answers]


async def generate(runner: GeneratorRunner) -> list[str]:
    async def ask(prompt: str) -> str:
        request = GenerationRequest([prompt], Sampling(max_tokens=20, ignore_eos=True, temperature=1, seed=1))
        async with runner.generate(request) as accepted:
            return "".join([delta.text async for _, delta in accepted.deltas])

    return await asyncio.gather(*map(ask, PROMPTS))


async def ask_all(runners: Runners) -> list[Any]:
    first, second, generator = runners
    return [*await asyncio.gather(classify(first), classify(second), generate(generator))]


async def test_answers_are_those_of_each_model_alone(make_runners: MakeRunners) -> None:
    async with loaded(make_runners(None)) as (first, second, generator):
        alone = [await classify(first), await classify(second), await generate(generator)]
    device = DeviceThread()
    async with loaded(make_runners(device)) as runners:
        for _ in range(3):
            assert await ask_all(runners) == alone
    device.close()


async def test_a_single_text_waits_for_few_turns_of_a_flooded_model(
    make_runners: MakeRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DeviceThread()
    turns: list[PackedForward] = []
    run = PackedForward.run

    def count_and_run(self: PackedForward, texts: Any) -> Any:
        turns.append(self)
        # Every turn is a long one, whatever the texts.
        time.sleep(0.01)
        return run(self, texts)

    async with loaded(make_runners(device)) as (first, second, _):
        monkeypatch.setattr(PackedForward, "run", count_and_run)
        flood = asyncio.create_task(classify(second, TEXTS * 10))
        await eventually(lambda: len(turns) > 3)
        waits = []
        for _ in range(10):
            before = len(turns)
            await classify(first, ["a"])
            waits.append(len(turns) - before)
        assert not flood.done()
        # Its own turn, the one that runs, and perhaps one that begins while its answer is on its way.
        assert max(waits) <= 3
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
    device.close()


async def test_a_model_answers_while_others_load(make_runners: MakeRunners) -> None:
    device = DeviceThread()
    first, second, generator = make_runners(device)
    await first.load()
    alone = await classify(first, TEXTS[:1])
    for runner in (second, generator):
        loading = asyncio.create_task(runner.load())
        answered = 0
        while not loading.done():
            assert await classify(first, TEXTS[:1]) == alone
            answered += 1
        assert answered > 3
        await loading
    for each in (first, second, generator):
        each.close()
    device.close()


async def test_a_model_is_unloaded_while_another_loads(
    make_runners: MakeRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, begun, go_on = DeviceThread(), threading.Event(), threading.Event()
    first, second, _ = make_runners(device)
    await first.load()
    check_finite = forward_selection._check_finite

    def wait_and_check(probe: Any) -> None:
        begun.set()
        assert go_on.wait(30)
        check_finite(probe)

    monkeypatch.setattr(forward_selection, "_check_finite", wait_and_check)
    loading = asyncio.create_task(second.load())
    await asyncio.to_thread(begun.wait, 30)
    async with asyncio.timeout(10):
        await first.unload()
    assert not loading.done()
    go_on.set()
    await loading
    assert len(await classify(second)) == len(TEXTS)
    await first.load()
    assert len(await classify(first)) == len(TEXTS)
    for runner in (first, second):
        runner.close()
    device.close()


async def test_a_failed_device_ends_all_models(make_runners: MakeRunners, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an illegal address on a GPU, which each model would meet."""
    device = DeviceThread()

    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    async with loaded(make_runners(device)) as runners:
        first, second, generator = runners
        monkeypatch.setattr(Decoder, "step", fail)
        with pytest.raises(EngineDeadError):
            await generate(generator)
        await eventually(lambda: all(runner.failed and not runner.ready for runner in runners))
        for runner in (first, second):
            with pytest.raises(EngineDeadError):
                await runner.infer([TextInput("a")], runner.default_options)
        with pytest.raises(EngineDeadError):
            await first.load()


async def test_a_failed_batch_on_a_gpu_ends_all_models(
    make_runners: MakeRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = DeviceThread()

    def fail(*_: Any) -> Any:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    async with loaded(make_runners(device)) as runners:
        monkeypatch.setattr(PackedForward, "run", fail)
        with pytest.raises(EngineDeadError):
            await classify(runners[0])
        await eventually(lambda: all(runner.failed for runner in runners))


@pytest.mark.parametrize("generates", [False, True])
async def test_an_unloaded_model_leaves_nothing_on_a_gpu(
    generates: bool, make_runners: MakeRunners, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch returns its memory to the GPU when nothing refers to the model any more."""
    device = DeviceThread()
    encoder, _, generator = make_runners(device)
    runner = generator if generates else encoder
    await runner.load()
    engine = generator._engine
    if generates:
        assert isinstance(engine, TransformersEngine)
        model = weakref.ref(engine._model().scheduler._decoder.model)
    else:
        assert encoder._loaded is not None
        model = weakref.ref(encoder._loaded.model)
    del engine
    alive: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(model() is not None))
    await runner.unload()
    assert alive == [False]
    device.close()
