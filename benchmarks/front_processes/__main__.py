"""What limits the requests of a server whose model costs nothing: several workers, or front processes before one model.

    python -m benchmarks.front_processes

Each side answers callers with one text a request: 1 and 2 workers of this server, and 1 and 2 processes that do HTTP
and tokenizing and hand the token ids over to one model process, by a Unix socket. The forward pass returns zeros. The
sides are measured in turn, in rounds. With fewer cores than processes the texts a second say little; what counts is the
CPU time a request of each process: Python runs one thread of a process at a time, so that no process can answer more
requests a second than its CPU time allows. `at most` is that limit for all processes of the side, each with a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks.closed_loop import Load
from benchmarks.cpu import cpu_seconds
from benchmarks.load import bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.models import make_sized_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import ROOT, sample, serve
from benchmarks.sizing import find_processes

_PATH = "/v1/models/model:predict"
_READY_SECONDS = 120


@dataclass(frozen=True)
class _Measured:
    """One load, and the CPU microseconds a request of the processes that speak HTTP, and of the model process."""

    load: Load
    http_cpu: float
    model_cpu: float


def main() -> None:
    options = _parse(sys.argv[1:])
    sys.stdout.write(f"{describe(machine())}\n\n")
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as servers:
        model = make_sized_model("BERT-tiny", Path(scratch) / "model")
        sides: dict[tuple[str, int], Callable[[], _Measured]] = {}
        for workers in options.processes:
            url = servers.enter_context(serve(_words(model, workers)))
            sides["workers", workers] = partial(_measure, url, None, options)
        for fronts in options.processes:
            socket = str(Path(scratch) / f"engine-{fronts}")
            engine = servers.enter_context(_start_engine(socket, model))
            url = servers.enter_context(serve(_words(model, fronts), environment={"BENCHMARK_ENGINE": socket}))
            sides["front processes and a model process", fronts] = partial(_measure, url, engine, options)
        for measure in sides.values():
            # Warm.
            measure()
        _report(take_turns(sides, options.rounds))


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_processes")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4.0, help="the length of each load")
    return parser.parse_args(words)


def _words(model: Path, workers: int) -> list[str]:
    """The command of a server; `{port}` is its port."""
    return [
        sys.executable, "-m", "bentoml", "serve", "benchmarks.front_processes.service:Runtime", "--port={port}",
        f"--arg=model_dir={model}", f"--arg=workers={workers}",
    ]  # fmt: skip


@contextlib.contextmanager
def _start_engine(socket: str, model: Path) -> Iterator[psutil.Process]:
    words = [sys.executable, "-m", "benchmarks.front_processes.engine", socket, str(model)]
    with subprocess.Popen(words, cwd=ROOT) as process:
        try:
            end = time.monotonic() + _READY_SECONDS
            while not Path(socket).exists():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("error: the model process does not start")
                time.sleep(0.1)
            yield psutil.Process(process.pid)
        finally:
            process.terminate()


def _measure(url: str, engine: psutil.Process | None, options: argparse.Namespace) -> _Measured:
    http, model = find_processes(url), [] if engine is None else [engine]
    before = cpu_seconds(http), cpu_seconds(model)
    load = asyncio.run(drive(url + _PATH, bodies("v1", sample(), 1), options.callers, 1, options.seconds))
    if load.errors:
        raise SystemExit(f"error: {load.errors} requests failed")
    used = cpu_seconds(http) - before[0], cpu_seconds(model) - before[1]
    return _Measured(load, *(1e6 * each / load.requests for each in used))


def _report(found: dict[tuple[str, int], list[_Measured]]) -> None:
    base = next(iter(found.values()))
    for (kind, processes), measured in found.items():
        speeds = [each.load.texts_a_second for each in measured]
        ratio = Ratio.of(speeds, [each.load.texts_a_second for each in base])
        http_cpu, model_cpu = (median(getattr(each, which) for each in measured) for which in ("http_cpu", "model_cpu"))
        most = processes * 1e6 / http_cpu
        if model_cpu:
            most = min(most, 1e6 / model_cpu)
        p50, p99 = (median(getattr(each.load, which) for each in measured) for which in ("p50", "p99"))
        sys.stdout.write(
            f"{processes} {kind}: {median(speeds):.0f} texts/s, {ratio} times; p50 {p50:.1f} ms, p99 {p99:.1f} ms; CPU "
            f"a request: {http_cpu:.0f} us, model process {model_cpu:.0f} us; at most {most:.0f} requests/s\n"
        )


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
