"""Closed-loop load: so many callers, each sending its next request when it has its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean, quantiles
from typing import Any

import aiohttp
import grpc
import orjson

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Load:
    """What a load measured; latencies in milliseconds."""

    callers: int
    texts_a_request: int
    texts_a_second: float
    p50: float
    p95: float
    p99: float
    errors: int
    requests: int


def bodies(
    protocol: str, texts: list[str], texts_a_request: int, parameters: dict[str, Any] | None = None
) -> list[bytes]:
    """Request bodies that go through the texts once, in V1, OpenAI's embeddings or the Open Inference Protocol.

    Args:
        parameters: options of the answer, for V1.
    """
    groups = [texts[start : start + texts_a_request] for start in range(0, len(texts), texts_a_request)]
    if protocol == "v1":
        options = {"parameters": parameters} if parameters else {}
        return [orjson.dumps({"instances": group, **options}) for group in groups]
    if protocol == "openai":
        return [orjson.dumps({"input": group}) for group in groups]
    return [
        orjson.dumps({"inputs": [{"name": "input-0", "shape": [len(group)], "datatype": "BYTES", "data": group}]})
        for group in groups
    ]


async def drive(url: str, requests: list[bytes], callers: int, texts_a_request: int, seconds: float) -> Load:
    """Load a server over HTTP, going through the requests again and again."""
    timeout = aiohttp.ClientTimeout(total=120)
    # Not compressed, as other servers do not.
    headers = {"content-type": "application/json", "accept-encoding": "identity"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def ask(turn: int) -> bool:
            async with session.post(url, data=requests[turn % len(requests)]) as response:
                await response.read()
                return response.status == 200

        return await closed_loop(ask, callers, texts_a_request, seconds)


async def drive_grpc(port: int, texts: list[str], callers: int, seconds: float) -> Load:
    """Load a server over gRPC with requests of one text each, going through the texts again and again."""
    requests = []
    for text in texts:
        request = messages.ModelInferRequest(model_name="model")
        tensor = request.inputs.add(name="input-0", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(text.encode())
        requests.append(request)
    async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
        stub: Any = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]

        async def ask(turn: int) -> bool:
            return len((await stub.ModelInfer(requests[turn % len(requests)])).outputs) == 1

        return await closed_loop(ask, callers, 1, seconds)


async def closed_loop(
    ask: Callable[[int], Awaitable[bool]], callers: int, texts_a_request: int, seconds: float
) -> Load:
    """Load a server for `seconds`, after a quarter of that to warm up.

    Both last longer if requests do: an answer for each caller is awaited in the warm-up, and another one after it.
    Else the callers whose first requests have waited longest would be left out.

    Args:
        ask: asks the n-th time; whether it was answered well.
    """
    finished: list[tuple[float, float]] = []
    errors = 0
    turn = count()

    async def call() -> None:
        nonlocal errors
        while True:
            sent = time.perf_counter()
            errors += not await ask(next(turn))
            finished.append((time.perf_counter(), time.perf_counter() - sent))

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    warm = await _wait(tasks, seconds / 4, lambda: len(finished) >= callers)
    first = len(finished)
    end = await _wait(tasks, seconds, lambda: len(finished) >= first + callers)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    latencies = [1000 * latency for when, latency in finished if warm <= when <= end]
    # Inclusive, since no quantile of few latencies may exceed the longest.
    cuts = quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else latencies * 99
    # Little's law for a closed loop: as exact for callers that wait in step, whose answers come in bursts.
    texts_a_second = callers * texts_a_request / (fmean(latencies) / 1000)
    return Load(callers, texts_a_request, texts_a_second, cuts[49], cuts[94], cuts[98], errors, len(finished))


async def _wait(tasks: Sequence[asyncio.Task[None]], seconds: float, is_enough: Callable[[], bool]) -> float:
    """Wait for `seconds`, longer until it is enough, or until a caller has failed; returns the time then."""
    least = time.perf_counter() + seconds
    while time.perf_counter() < least or not is_enough():
        if any(task.done() for task in tasks):
            break
        await asyncio.sleep(_POLL_SECONDS)
    return time.perf_counter()
