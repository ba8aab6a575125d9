"""Ask every route of every task wrongly, in this process and over gRPC and, as bytes, of a started server.

    python -m tests.attack.fuzz [--requests 100000] [--bytes 20000] [--seed 0] [--tasks ...]

It exits with 1 where an answer is the server's fault: a 5xx but 501 and 503, UNKNOWN or INTERNAL, or a traceback in the
log. Each failure is printed with the seed that makes its request again.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import grpc
from starlette.types import ASGIApp

from protocol.application import create_application
from protocol.open_inference.grpc.server import GrpcServer
from protocol.open_inference.predictor.client import connect_predictor
from runners.core.arguments import Arguments
from runners.core.runner import Runner
from runners.hosting.selection import create_runner
from tests.attack import fuzz_grpc, fuzz_requests
from tests.attack.case import ServerKind
from tests.attack.fuzz_bytes import fuzz_bytes, is_fault
from tests.attack.harness import find_worker, raise_file_limit
from tests.attack.seeds import SEEDS
from tests.attack.servers import start_server
from tests.families import FAMILIES
from tests.generators import save_generator
from tests.served import models_of
from tests.servers import ServerProcess, free_port

# At once, so that batches are shared.
_CALLERS = 64
_GRPC_SHARE = 0.25
_MOST_SHOWN = 30
_GENERATION = "text_generation"
_FAMILIES = {"text_ranking": "albert", "sequence_classification": "distilbert", "token_classification": "roberta"}


@dataclass
class Report:
    """What was answered how often, and what is the server's fault."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def show(self, out: Callable[[str], object], seconds: float) -> None:
        """A line for each route, with its statuses."""
        for route in sorted({route for route, _ in self.counts}):
            answers = sorted((status, count) for (each, status), count in self.counts.items() if each == route)
            out(f"{route}: {', '.join(f'{status}: {count:,}' for status, count in answers)}\n")
        for failure in self.failures[:_MOST_SHOWN]:
            out(f"FAILED {failure}\n")
        total = self.counts.total()
        out(f"{total:,} requests, {len(self.failures):,} failures, {total / seconds:,.0f} requests/s\n")


class Tracebacks(logging.Handler):
    """Collects what is logged with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1] is not None:
            self.found.append(f"{record.getMessage()[:200]}: {record.exc_info[1]!r}"[:500])


@dataclass(frozen=True)
class Application:
    """A served tiny model, asked in this process."""

    task: str
    runner: Runner
    asgi: ASGIApp
    server: GrpcServer
    channel: grpc.aio.Channel

    @classmethod
    async def start(cls, task: str, folder: Path) -> Application:
        if task == _GENERATION:
            model = save_generator(folder / task, "llama")
        else:
            model = FAMILIES[_FAMILIES.get(task, "bert")].save(folder / task, task)
        port = free_port()
        # So short a context that what asks for many tokens does not take long.
        given = {"model_dir": str(model), "backend": "huggingface", "grpc_port": port}
        # Nothing in a model's files says that it is for sparse vectors.
        given |= {"task": task} if task == "sparse_embedding" else {}
        arguments = Arguments.model_validate(given | ({"max_length": 48} if task == _GENERATION else {}))
        runner = create_runner(arguments, connect_predictor)
        models = models_of(runner)
        await runner.load()
        server = GrpcServer(models, arguments)
        await server.start()
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        return cls(task, runner, create_application(models, arguments), server, channel)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(20)
        await asyncio.to_thread(self.runner.close)

    async def ask(self, seed: str, report: Report) -> None:
        """One request, which the seed makes."""
        random = Random(f"{self.task} {seed}")
        if random.random() < _GRPC_SHARE:
            method, message = fuzz_grpc.make_call(random, self.task == _GENERATION)
            code, said = await fuzz_grpc.call(self.channel, method, message)
            route, failed, what = method, fuzz_grpc.is_failure(code), repr(message[:300])
        else:
            request = fuzz_requests.make_request(random, SEEDS[self.task])
            status, said = await fuzz_requests.ask(self.asgi, request)
            code, route, failed = str(status), request.route, fuzz_requests.is_failure(status)
            what = f"{request.method} {request.path!r} {request.headers} {request.body[:300]!r}"
        report.counts[f"{self.task} {route}", code] += 1
        if failed:
            report.failures.append(f"{self.task} {seed}: {code} {said} {what}")


async def fuzz(tasks: Sequence[str], requests: int, seed: int, folder: Path) -> Report:
    """Ask each task its share of so many requests."""
    report = Report()
    tracebacks = Tracebacks()
    logging.getLogger().addHandler(tracebacks)
    try:
        for task in tasks:
            application = await Application.start(task, folder)
            try:
                await _repeat(application, requests // len(tasks), seed, report)
            finally:
                await application.stop()
    finally:
        logging.getLogger().removeHandler(tracebacks)
    report.failures.extend(f"in the log: {found}" for found in tracebacks.found)
    return report


async def _repeat(application: Application, requests: int, seed: int, report: Report) -> None:
    numbers = iter(range(requests))

    async def caller() -> None:
        for number in numbers:
            await application.ask(f"{seed}-{number}", report)

    callers: list[Awaitable[None]] = [caller() for _ in range(_CALLERS)]
    await asyncio.gather(*callers)


# The task of what is served as bytes.
_SERVED = {ServerKind.RANKER: "text_ranking", ServerKind.GENERATOR: _GENERATION}


def fuzz_started(served: ServerKind, requests: int, seed: int, folder: Path) -> Report:
    """Send so many connections' bytes to a server that is started for it."""
    server = start_server(served, folder, *(["max_length=48"] if served is ServerKind.GENERATOR else []))
    raise_file_limit()
    try:
        return fuzz_server(server, _SERVED[served], requests, seed)
    finally:
        server.terminate()


def fuzz_server(server: ServerProcess, task: str, requests: int, seed: int) -> Report:
    """The same, to one that runs."""
    report = Report()
    worker, logged = find_worker(server), len(server.output)
    for name, data, outcomes in fuzz_bytes(server.port, SEEDS[task], requests, f"{task} {seed}"):
        for outcome in outcomes:
            report.counts[f"{task} as bytes", outcome] += 1
        if is_fault(outcomes):
            report.failures.append(f"{name}: {outcomes} {data[:600]!r}")
    if find_worker(server) != worker:
        report.failures.append("the worker was replaced")
    if "Traceback" in (output := server.output[logged:]):
        report.failures.append(f"in the log: {output[output.index('Traceback') :][:3000]}")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack.fuzz")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=20_000, help="connections to started servers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tasks", default=",".join(SEEDS))
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Bodies that are nested deeply are copied before they are changed.
    sys.setrecursionlimit(20_000)
    failed = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = given.tasks.split(",") if given.requests else []
        rounds = [
            *(partial(_fuzz_task, task, given.requests // len(tasks), given.seed, folder) for task in tasks),
            *(
                partial(fuzz_started, each, given.bytes // len(_SERVED), given.seed, folder)
                for each in _SERVED
                if given.bytes
            ),
        ]
        for fuzz_round in rounds:
            started = time.monotonic()
            report = fuzz_round()
            report.show(sys.stdout.write, time.monotonic() - started)
            sys.stdout.flush()
            failed |= bool(report.failures)
    return int(failed)


def _fuzz_task(task: str, requests: int, seed: int, folder: Path) -> Report:
    return asyncio.run(fuzz([task], requests, seed, folder))


if __name__ == "__main__":
    sys.exit(main())
