"""The runner as the protocols see it: in the background, off the event loop, one failure hurting nobody else."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import Any

import httpx
import pytest

from protocol.application import create_application
from runners.core.arguments import Arguments
from runners.core.errors import EngineDeadError, ModelNotReadyError
from runners.core.predictions import TextInput
from runners.core.spinning import SpinControl
from runners.encoder.packing import PackedForward
from runners.encoder.queue import BatchQueue
from runners.encoder.runner import EncoderRunner
from runners.encoder.tasks.sequence_classification import SequenceClassification
from tests.conftest import ModelFolder
from tests.served import models_of
from tests.servers import ROOT
from tests.waiting import eventually

PREDICT = "/v1/models/model:predict"
BODY = {"instances": ["a text"]}


def connect(runner: EncoderRunner) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(
        create_application(models_of(runner), Arguments(max_request_bytes=10_000)), raise_app_exceptions=False
    )
    return httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60)


def loaded_queue(runner: EncoderRunner) -> BatchQueue:
    assert runner._loaded is not None
    return runner._loaded.queue


@pytest.fixture
def arguments(model_folder: ModelFolder) -> Arguments:
    return Arguments(model_dir=str(model_folder("bert", "sequence_classification")))


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/v2/health/live", 200, {"live": True}),
        ("GET", "/", 200, {"status": "alive"}),
        ("GET", "/v2/health/ready", 503, {"ready": False}),
        ("GET", "/v1/models/model", 503, {"error": "Model with name model is not ready."}),
        ("GET", "/v2/models/model", 503, {"error": "Model with name model is not ready."}),
        ("GET", "/v2/models/model/ready", 503, {"error": "Model with name model is not ready."}),
        ("POST", PREDICT, 503, {"error": "Model with name model is not ready."}),
        ("POST", "/v1/models/model:explain", 503, {"error": "Model with name model is not ready."}),
        ("POST", "/v2/models/model/infer", 503, {"error": "Model with name model is not ready."}),
        ("GET", "/v1/models/nope", 404, {"error": "Model with name nope does not exist. This server has model."}),
    ],
)
async def test_before_the_model_is_loaded(
    method: str, path: str, status: int, body: dict[str, Any], arguments: Arguments
) -> None:
    async with connect(EncoderRunner(arguments)) as client:
        response = await client.request(method, path, json=BODY if method == "POST" else None)
        assert (response.status_code, response.json()) == (status, body)


async def test_after_the_model_is_closed(arguments: Arguments) -> None:
    runner = EncoderRunner(arguments)
    await runner.load()
    runner.close()
    assert not runner.ready
    with pytest.raises(ModelNotReadyError):
        await runner.infer([TextInput("a")], runner.default_options)


# In a process of its own, whose heap has no holes that the weights, 130 MiB, would fill.
_UNLOADING = """
import asyncio, sys
from runners.core.arguments import Arguments
from runners.encoder.runner import EncoderRunner
from runners.hosting.idle_memory import _resident, configure_heaps

async def main():
    configure_heaps()
    runner = EncoderRunner(Arguments(model_dir=sys.argv[1]))
    await runner.load()
    loaded = _resident()
    await runner.unload()
    print((loaded - _resident()) // 2**20)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory back themselves")
def test_an_unloaded_model_takes_no_memory(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "sequence_classification", hidden_size=512, intermediate_size=8 * 1024)
    run = subprocess.run([sys.executable, "-c", _UNLOADING, folder], cwd=ROOT, capture_output=True, check=True)
    assert int(run.stdout) > 100


def end_thread(*_: Any) -> Any:
    raise SystemExit


async def test_a_device_thread_that_ends_leaves_no_spin_control(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = SpinControl(lambda _: None)
    monkeypatch.setattr(SpinControl, "start", lambda _: control)
    runner = EncoderRunner(arguments)
    await runner.load()
    # After the batch, so that its request has an answer.
    monkeypatch.setattr(BatchQueue, "record_throughput", end_thread)
    await runner.infer([TextInput("a")], runner.default_options)
    await eventually(lambda: not runner.ready and not control._thread.is_alive())
    assert runner.failed


async def test_a_device_thread_that_ends_in_a_batch_answers_it(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = EncoderRunner(arguments)
    await runner.load()
    monkeypatch.setattr(SequenceClassification, "split_scores", end_thread)
    with pytest.raises(EngineDeadError):
        await runner.infer([TextInput("a"), TextInput("b")], runner.default_options)


async def test_a_batch_that_cannot_be_counted_is_refused(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a batch, no caller waits for ever, and none of its texts runs."""
    runner = EncoderRunner(arguments)
    await runner.load()
    queue = loaded_queue(runner)
    assert runner._loaded is not None

    def fail(_: object) -> int:
        raise RuntimeError

    monkeypatch.setattr(runner._loaded.forward, "count_padding", fail)
    async with asyncio.timeout(10):
        with pytest.raises(ModelNotReadyError):
            await runner.infer([TextInput("a")], runner.default_options)
    await eventually(lambda: queue._running_texts == 0)


def test_a_predictor_needs_no_long_spinning(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    EncoderRunner(arguments.model_copy(update={"predictor_host": "predictor"}))
    assert "OMP_WAIT_POLICY" not in os.environ


async def test_health_answers_while_a_batch_runs(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that takes 5 s, or until the test has seen enough; live must answer meanwhile, in under 50 ms."""
    seen_enough = threading.Event()
    running = threading.Event()

    def slow_read(*_: Any) -> Any:
        running.set()
        seen_enough.wait(5)
        raise RuntimeError("a slow stand-in has no answer")

    runner = EncoderRunner(arguments)
    await runner.load()
    monkeypatch.setattr(SequenceClassification, "split_scores", slow_read)
    async with connect(runner) as client:
        prediction = asyncio.create_task(client.post(PREDICT, json=BODY))
        assert await asyncio.to_thread(running.wait, 30)
        latencies = []
        for path in ("/v2/health/live", "/v2/health/ready", "/v1/models/model") * 5:
            start = time.perf_counter()
            assert (await client.get(path)).status_code == 200
            latencies.append(time.perf_counter() - start)
        assert not prediction.done(), "the batch must still be running"
        seen_enough.set()
        await prediction
        assert sorted(latencies)[len(latencies) // 2] < 0.05
    runner.close()


async def test_a_fault_inside_is_a_500_that_says_nothing(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty_read(*_: Any) -> Any:
        raise RuntimeError("secret prompt")

    runner = EncoderRunner(arguments)
    await runner.load()
    async with connect(runner) as client:
        with monkeypatch.context() as patch:
            patch.setattr(SequenceClassification, "split_scores", faulty_read)
            response = await client.post(PREDICT, json=BODY)
            assert response.status_code == 500
            assert response.json()["error"].startswith("internal server error (reference ")
        assert (await client.post(PREDICT, json=BODY)).status_code == 200, "the next request must be served"
    runner.close()


async def test_a_text_that_fails_in_a_batch_fails_alone(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    split_scores = SequenceClassification.split_scores

    def read_but_seven_tokens(self: Any, *given: Any) -> Any:
        if any(len(text.input_ids) == 7 for text in running[-1]):
            raise RuntimeError("cannot do seven tokens")
        return split_scores(self, *given)

    running: list[Any] = []
    run = PackedForward.run

    def remember_and_run(self: Any, texts: Any) -> Any:
        running.append(texts)
        return run(self, texts)

    runner = EncoderRunner(arguments)
    await runner.load()
    monkeypatch.setattr(PackedForward, "run", remember_and_run)
    monkeypatch.setattr(SequenceClassification, "split_scores", read_but_seven_tokens)
    texts = ["one two three four five", "one", "one two", "one two three"] * 3
    answers = await asyncio.gather(
        *(runner.infer([TextInput(text)], runner.default_options) for text in texts), return_exceptions=True
    )
    assert [isinstance(answer, Exception) for answer in answers] == [True, False, False, False] * 3
    runner.close()


async def test_too_many_requests_are_refused_at_once(arguments: Arguments, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    split_scores = SequenceClassification.split_scores

    def slow_read(*given: Any) -> Any:
        let_go.wait(30)
        return split_scores(*given)

    runner = EncoderRunner(arguments.model_copy(update={"max_concurrent_requests": 2}))
    await runner.load()
    monkeypatch.setattr(SequenceClassification, "split_scores", slow_read)
    async with connect(runner) as client:
        accepted = [asyncio.create_task(client.post(PREDICT, json=BODY)) for _ in range(2)]
        await eventually(lambda: loaded_queue(runner).admission.requests == 2)
        refused = await client.post(PREDICT, json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json() == {
            "error": "the model is busy with 2 requests, which is the most it takes (max_concurrent_requests); "
            "try again later"
        }
        let_go.set()
        assert [(await task).status_code for task in accepted] == [200, 200]
        assert (await client.post(PREDICT, json=BODY)).status_code == 200
    runner.close()


async def test_texts_of_a_caller_that_has_gone_do_not_run(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = threading.Event()
    ran: list[int] = []
    run = PackedForward.run

    def slow_run(self: Any, texts: Any) -> Any:
        ran.extend(len(text.input_ids) for text in texts)
        let_go.wait(30)
        return run(self, texts)

    runner = EncoderRunner(arguments)
    await runner.load()
    monkeypatch.setattr(PackedForward, "run", slow_run)

    def ask(text: str) -> asyncio.Task[Any]:
        return asyncio.create_task(runner.infer([TextInput(text)], runner.default_options))

    first = ask("one")
    await eventually(lambda: ran)
    gone, stays = ask("one two"), ask("one two three")
    await eventually(lambda: len(loaded_queue(runner)._entries) == 2)
    gone.cancel()
    await eventually(lambda: loaded_queue(runner).admission.requests == 2)
    let_go.set()
    await asyncio.gather(first, stays)
    assert ran == [3, 5]
    runner.close()


async def test_many_requests_at_once_get_their_own_answers(arguments: Arguments) -> None:
    runner = EncoderRunner(arguments)
    await runner.load()
    async with connect(runner) as client:

        async def ask(text: str) -> Any:
            body = {"instances": [text], "parameters": {"return_raw_logits": True}}
            return (await client.post(PREDICT, json=body)).json()["predictions"][0]

        texts = [f"text number {number} {'word ' * (number % 7)}" for number in range(40)]
        assert await asyncio.gather(*map(ask, texts)) == [await ask(text) for text in texts]
    runner.close()
