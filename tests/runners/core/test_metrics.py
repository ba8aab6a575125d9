"""The gauges of what waits and runs, on real engines and over several workers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from protocol.application import create_application
from runners.core.arguments import Arguments
from runners.core.generation import Sampling
from runners.core.metric_families import flush
from runners.core.metrics import WAITING_TEXTS, GaugePart
from runners.core.predictions import TextInput
from runners.encoder import worker as encoder_worker
from runners.encoder.runner import EncoderRunner
from runners.generator.decoder import Decoder
from runners.generator.row_allocation import MAX_ROWS
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder, ModelFolder
from tests.served import models_of
from tests.waiting import eventually

WORKER = """
import sys, time
from runners.core.metric_families import flush
from runners.core.metrics import QueueMetrics
load = QueueMetrics("shared")
load.waiting.set(int(sys.argv[1]))
load.running.set(1)
flush()
print("set", flush=True)
time.sleep(600)
"""


def load(model: str) -> tuple[float | None, float | None]:
    flush()
    names = ("runtime_waiting_texts", "runtime_running_texts")
    waiting, running = (REGISTRY.get_sample_value(name, {"model_name": model}) for name in names)
    return waiting, running


async def wait_for_load(expected: tuple[float, float], model: str) -> None:
    # Batches of one text, which a busy machine takes half a second for.
    await eventually(lambda: load(model) == expected, seconds=60)


def test_parts_of_a_gauge_do_not_disturb_each_other() -> None:
    first, second = GaugePart("parts", WAITING_TEXTS), GaugePart("parts", WAITING_TEXTS)
    first.set(5)
    second.set(2)
    assert load("parts")[0] == 7
    first.set(0)
    first.set(0)
    assert load("parts")[0] == 2


async def test_an_encoder_counts_its_texts_and_forgets_them(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After answers, a failed batch, a caller that has gone, and an unload while texts wait."""
    name = "counted-encoder"
    folder = str(model_folder("bert", "sequence_classification"))
    runner = EncoderRunner(Arguments(model_dir=folder, model_name=name, max_batch_tokens=8))
    texts = [TextInput(f"text number {index}") for index in range(20)]
    gate = asyncio.Event()
    predict = encoder_worker._predict

    loop = asyncio.get_running_loop()

    def behind_the_gate(*given: Any) -> Any:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        return predict(*given)

    def fail(*_: Any) -> Any:
        raise RuntimeError("the model fails")

    await runner.load()
    assert load(name) == (0, 0)
    monkeypatch.setattr(encoder_worker, "_predict", behind_the_gate)
    request = asyncio.create_task(runner.infer(texts, runner.default_options))
    await wait_for_load((19, 1), name)
    leaving = asyncio.create_task(runner.infer(texts, runner.default_options))
    await wait_for_load((39, 1), name)
    leaving.cancel()
    await wait_for_load((19, 1), name)
    gate.set()
    assert len(await request) == 20
    await wait_for_load((0, 0), name)

    monkeypatch.setattr(encoder_worker, "_predict", fail)
    with pytest.raises(RuntimeError):
        await runner.infer(texts, runner.default_options)
    await wait_for_load((0, 0), name)

    monkeypatch.setattr(encoder_worker, "_predict", behind_the_gate)
    gate.clear()
    request = asyncio.create_task(runner.infer(texts, runner.default_options))
    await wait_for_load((19, 1), name)
    loop.call_later(0.1, gate.set)
    await asyncio.to_thread(runner.close)
    assert (await asyncio.gather(request, return_exceptions=True))[0].__class__.__name__ == "ModelNotReadyError"
    await wait_for_load((0, 0), name)


async def test_transformers_generation_counts_its_sequences(
    generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are cancelled while they wait behind others, and the end of the engine."""
    name = "counted-generator"
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2")), model_name=name))
    engine.load()
    steps = threading.Semaphore(0)
    step = Decoder.step

    def step_when_told(*given: Any) -> Any:
        steps.acquire()
        return step(*given)

    async def generate(prompt: list[int]) -> None:
        async with aclosing(engine.generate(prompt, Sampling(max_tokens=50, ignore_eos=True))) as deltas:
            async for _ in deltas:
                pass

    async def after_some_steps(expected: tuple[int, int]) -> None:
        for _ in range(40):
            await asyncio.sleep(0.05)
            if load(name) == expected:
                return
            steps.release()
        raise AssertionError(f"{load(name)} instead of {expected}")

    try:
        assert load(name) == (0, 0)
        monkeypatch.setattr(Decoder, "step", step_when_told)
        prompt = await engine.tokenize("Return the value")
        tasks = [asyncio.create_task(generate(prompt)) for _ in range(MAX_ROWS + 6)]
        await after_some_steps((6, MAX_ROWS))
        for task in tasks[-2:]:
            task.cancel()
        await after_some_steps((4, MAX_ROWS))
        tasks[0].cancel()
        await after_some_steps((3, MAX_ROWS))
        steps.release(1000)
        await asyncio.gather(*tasks, return_exceptions=True)
        await wait_for_load((0, 0), name)
        tasks = [asyncio.create_task(generate(prompt)) for _ in range(3)]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.close)
        await asyncio.gather(*tasks, return_exceptions=True)
        await wait_for_load((0, 0), name)
    finally:
        steps.release(1000)
        engine.close()


def test_the_sum_is_of_the_workers_that_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was killed with a full queue would keep an autoscaler busy for ever."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def start(waiting: int) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(waiting)], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert worker.stdout is not None
        assert worker.stdout.readline() == "set\n"
        return worker

    first, second = start(30), start(4)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    client = TestClient(create_application(models_of(EncoderRunner(Arguments())), Arguments()))

    def scrape() -> str:
        return client.get("/metrics").text

    try:
        assert 'runtime_waiting_texts{model_name="shared"} 34.0' in scrape()
        assert 'runtime_running_texts{model_name="shared"} 2.0' in scrape()
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert 'runtime_waiting_texts{model_name="shared"} 4.0' in scrape()
        assert 'runtime_running_texts{model_name="shared"} 1.0' in scrape()
    finally:
        for worker in (first, second):
            worker.kill()
            worker.wait()
