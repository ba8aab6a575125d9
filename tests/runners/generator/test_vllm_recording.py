"""Since when vLLM's engine owes an output, on an AsyncLLM that does as it is told."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from runners.core.watchdog import Watchdog
from tests.waiting import eventually

pytest.importorskip("vllm")

from vllm.v1.engine.async_llm import AsyncLLM

from runners.generator.vllm import recording
from runners.generator.vllm.engine import VllmEngine
from runners.generator.vllm.recording import RecordingLLM


class Engine:
    """What the methods of AsyncLLM are replaced by, and the clock; calls are known by their names."""

    def __init__(self) -> None:
        self.now = 0.0
        self.outputs: dict[str, asyncio.Queue[Any]] = {}
        self.core = SimpleNamespace(
            get_output_async=self.get_output,
            shutdown=lambda timeout: None,
            resources=SimpleNamespace(engine_manager=SimpleNamespace(processes=[SimpleNamespace(pid=123)])),
        )

    async def get_output(self) -> str:
        return "of a step"

    async def answer(self, name: str) -> AsyncGenerator[Any, None]:
        queue = self.outputs[name] = asyncio.Queue()
        while (output := await queue.get()) is not None:
            if isinstance(output, Exception):
                raise output
            yield output


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine()
    monkeypatch.setattr(recording, "perf_counter", lambda: made.now)
    monkeypatch.setattr(AsyncLLM, "__init__", lambda llm: setattr(llm, "engine_core", made.core))
    monkeypatch.setattr(AsyncLLM, "generate", lambda _, prompt, *__: made.answer(prompt))
    monkeypatch.setattr(AsyncLLM, "encode", lambda _, prompt: made.answer(prompt))
    return made


class Calls:
    """Calls of an engine, each with a reader that asks for one output after the other when it is told."""

    def __init__(self, engine: Engine, encodes: bool) -> None:
        self._engine = engine
        self._encodes = encodes
        self.llm = RecordingLLM()
        self._outputs: dict[str, AsyncGenerator[Any, None]] = {}
        self._reading: dict[str, asyncio.Task[Any]] = {}

    async def do(self, action: str, name: str = "") -> None:
        match action:
            case "ask":
                parameters: Any = SimpleNamespace(output_kind=None)
                call = self.llm.encode(name) if self._encodes else self.llm.generate(name, parameters, name)
                self._outputs[name] = call
                self._read(name)
                await eventually(lambda: name in self._engine.outputs)
            case "read":
                self._read(name)
            case "step":
                await self.llm.engine_core.get_output_async()
            case "leave":
                self._reading[name].cancel()
                await asyncio.wait({self._reading[name]})
                await self._outputs[name].aclose()
            case "answer" | "end" | "refuse":
                await self.do("step")
                output = {"answer": SimpleNamespace(finished=False), "end": None, "refuse": ValueError()}[action]
                self._engine.outputs[name].put_nowait(output)
                await asyncio.wait({self._reading[name]})
                self._reading[name].exception()
        await asyncio.sleep(0)

    def _read(self, name: str) -> None:
        self._reading[name] = asyncio.ensure_future(anext(self._outputs[name], None))


# Each step is a second: what happens, and since which second the engine owes an output then.
@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(["ask a: 1", "ask b: 1", "wait: 1"], id="nothing comes"),
        pytest.param(["ask a: 1", "ask b: 1", "answer a: 3", "read a: 3", "answer b: 5"], id="any output counts"),
        pytest.param(["ask a: 1", "answer a: -", "wait: -", "read a: 4"], id="a reader is slow"),
        pytest.param(["ask a: 1", "step: 2", "step: 3", "end a: -"], id="the call gets one output at its end"),
        pytest.param(["ask a: 1", "leave a: -", "wait: -", "ask b: 4"], id="a client leaves"),
        pytest.param(["ask a: 1", "ask b: 1", "leave a: 1", "ask c: 1", "leave b: 1"], id="clients give up in turns"),
        pytest.param(["ask a: 1", "refuse a: -", "ask b: 3"], id="a request is refused"),
    ],
)
async def test_since_when_an_output_is_owed(steps: list[str], encodes: bool, engine: Engine) -> None:
    calls = Calls(engine, encodes)
    assert calls.llm.owed_outputs.since is None
    for step in steps:
        engine.now += 1
        what, since = step.split(": ")
        await calls.do(*what.split())
        assert calls.llm.owed_outputs.since == (None if since == "-" else float(since)), step


async def test_the_watchdog_sees_a_silent_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(engine, encodes=False)
    monkeypatch.setattr(RecordingLLM, "model_config", SimpleNamespace(get_diff_sampling_param=dict), raising=False)
    monkeypatch.setattr(RecordingLLM, "get_tokenizer", lambda _: None)
    nothing: Any = None
    vllm = VllmEngine(calls.llm, nothing, nothing)
    watchdog = Watchdog(lambda: [vllm], 10)
    monkeypatch.setattr(time, "perf_counter", lambda: engine.now)
    with caplog.at_level(logging.WARNING):
        await calls.do("ask", "a")
        for engine.now, is_stuck in ((9.0, False), (11.0, True), (20.0, True)):
            assert (watchdog.check(), vllm.stuck) == (is_stuck, is_stuck)
        await calls.do("answer", "a")
        assert (watchdog.check(), vllm.stuck) == (False, False)
    assert caplog.messages == [
        "the server is not live (--watchdog_seconds=10): vLLM's engine (process 123) has given no output for 11.0 s "
        "although requests wait",
        "the server is live again: nothing is stuck any more",
    ]
