"""Closed-loop load of servers, over HTTP and gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import grpc
import orjson

from benchmarks.closed_loop import Load, closed_loop
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub

_TIMEOUT = aiohttp.ClientTimeout(total=120)
# Not compressed, as other servers do not.
_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}


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
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, headers=_HEADERS) as session:

        async def ask(turn: int) -> bool:
            async with session.post(url, data=requests[turn % len(requests)]) as response:
                await response.read()
                return response.status == 200

        return await closed_loop(ask, callers, texts_a_request, seconds)


async def ask_once(url: str, requests: list[bytes], callers: int) -> None:
    """Ask a server each request once, by callers that send their next one when they have an answer.

    Raises:
        SystemExit: a request failed.
    """
    waiting = iter(requests)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT, headers=_HEADERS) as session:

        async def call() -> None:
            for request in waiting:
                async with session.post(url, data=request) as response:
                    await response.read()
                    if response.status != 200:
                        raise SystemExit(f"error: the server answered {response.status}")

        await asyncio.gather(*(call() for _ in range(callers)))


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
