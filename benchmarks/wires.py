"""What the wires cost: gRPC against REST in CPU time, and binary tensors against JSON in time to answer.

    make bench-wires

The CPU time is the server's own, of all its processes, for each text; once with a DistilBERT-size model and once with
one that answers at once, so that only the wire is left. The loads are in turn, and the ratio of each pair is the
result.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import orjson
from starlette.types import ASGIApp, Message

from benchmarks.cpu import describe_spread, measure, serving
from benchmarks.load import bodies, drive, drive_grpc
from benchmarks.models import make_model
from benchmarks.run import free_port, instant_words, sample, serve, serve_words

_TEXTS = 64
_CALLERS = 16
_ROUNDS = 5
_PATH = "/v2/models/model/infer"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_model("sequence_classification", Path(scratch) / "model")
        _compare_cpu("DistilBERT-size model", serve_words(folder, "float32"), 10.0)
    _compare_cpu("a model that answers at once", instant_words(), 4.0)
    _compare_forms()


def _compare_cpu(name: str, words: list[str], seconds: float) -> None:
    port = free_port()
    texts = sample()
    with serve(words, environment={"RUNTIME_ENABLE_GRPC": "1", "RUNTIME_GRPC_PORT": str(port)}) as url:
        costs: dict[str, list[float]] = {"REST": [], "gRPC": []}
        processes = serving(url)
        for _ in range(_ROUNDS):
            for wire, load in (
                ("REST", lambda: drive(url + _PATH, bodies("oip", texts, 1), _CALLERS, 1, seconds)),
                ("gRPC", lambda: drive_grpc(port, texts, _CALLERS, seconds)),
            ):
                costs[wire].append(measure(processes, load())[0])
    rest, remote = (median(costs[wire]) for wire in ("REST", "gRPC"))
    ratios = [second / first for first, second in zip(costs["REST"], costs["gRPC"], strict=True)]
    sys.stdout.write(
        f"{name}, {_CALLERS} callers: {rest:.0f} us of CPU a text over REST, {remote:.0f} over gRPC; "
        f"ratio by pair: {describe_spread(ratios)}\n"
    )


def _compare_forms() -> None:
    """Binary tensors against JSON: as a client sees it, and what the server does for it."""
    with serve(instant_words()) as url:
        # A client that reads as fast as it can.
        connection = http.client.HTTPConnection(url.removeprefix("http://"))

        def ask(body: bytes) -> int:
            connection.request("POST", _PATH, body, {"content-type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            return len(answer.read())

        _time_forms("over a connection, read by the client", ask)

    from benchmarks.instant_service import create_worker

    worker = create_worker()
    application = worker.application
    loop = asyncio.new_event_loop()
    loop.run_until_complete(worker.models.load("model"))
    _time_forms(
        "in the server, from request to answer",
        lambda body: loop.run_until_complete(_answer(application, body)),
    )


def _time_forms(name: str, ask: Callable[[bytes], int]) -> None:
    tensor = {"name": "input-0", "shape": [_TEXTS], "datatype": "BYTES", "data": ["a"] * _TEXTS}
    times: dict[bool, list[float]] = {True: [], False: []}
    sizes: dict[bool, int] = {}
    for _ in range(10):
        for binary, measured in times.items():
            output = {"name": "logits", "parameters": {"binary_data": binary}}
            body = orjson.dumps({"inputs": [tensor], "outputs": [output]})
            for _ in range(20):
                start = time.perf_counter()
                sizes[binary] = ask(body)
                measured.append(time.perf_counter() - start)
    as_json, as_binary = (1000 * median(times[binary]) for binary in (False, True))
    sys.stdout.write(
        f"logits of [{_TEXTS}, 512, 9], {name}: {sizes[False] / 1e6:.1f} MB of JSON in {as_json:.2f} ms, "
        f"{sizes[True] / 1e6:.1f} MB in binary in {as_binary:.2f} ms; ratio {as_json / as_binary:.1f}\n"
    )


async def _answer(application: ASGIApp, body: bytes) -> int:
    """Give the application a request as the HTTP server does; how many bytes it answers."""
    answered = asyncio.Event()
    size = 0
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for part in parts:
            return part
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal size
        size += len(message.get("body", b""))

    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "method": "POST",
        "path": _PATH,
        "headers": headers,
        "query_string": b"",
        "http_version": "1.1",
    }
    await application(scope, receive, send)
    return size


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
