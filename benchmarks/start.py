"""How long this server takes to get ready, and how much memory it holds then and after requests.

    make bench-start
    make bench-start BENCH_START="--rounds 5 --other ../another-checkout"

The first start of each checkout has an empty cache folder, so it tries kernels, and may compile the checkout's modules;
the others find what it chose and compiled. With another checkout, both are started in turn, and the ratios are those of
pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import median

import psutil

from benchmarks.cpu import cpu_seconds
from benchmarks.load import bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.memory import measure_memory
from benchmarks.models import TASKS, make_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import ROOT, sample, serve, serve_words

_HERE = "this checkout"
_LOAD_SECONDS = 5.0


@dataclass(frozen=True)
class Start:
    """One start. Times are seconds since the command, memory is MB (PSS).

    Attributes:
        first_answer: until `/v2/health/live` answered.
        ready: until `/v2/health/ready` did.
        cpu: CPU seconds of all processes until then.
        parent, worker: the memory of each when ready.
        under_load: the memory of both after 5 s of requests by 8 callers.
    """

    first_answer: float
    ready: float
    cpu: float
    parent: float
    worker: float
    under_load: float


def main() -> None:
    options = _parse(sys.argv[1:])
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(options.task, Path(scratch) / "model")
        checkouts = {_HERE: ROOT} | ({} if options.other is None else {str(options.other): options.other})
        starts = {
            name: partial(start, folder, model, Path(scratch) / f"cache-{number}")
            for number, (name, folder) in enumerate(checkouts.items())
        }
        first = take_turns(starts, 1)
        later = take_turns(starts, options.rounds)
    sys.stdout.write(f"{describe(machine())}\n\n{make_table(first, later)}")


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-start")
    parser.add_argument("--task", choices=TASKS, default="sequence_classification")
    parser.add_argument("--rounds", type=int, default=3, help="starts after the first one")
    parser.add_argument("--other", type=Path, help="another checkout, which is started in turn with this one")
    return parser.parse_args(words)


def start(folder: Path, model: Path, cache: Path) -> Start:
    """Start the server of a checkout, load it and stop it."""
    began = time.monotonic()
    words = serve_words(model, "float32")
    # Users' interpreters keep the bytecode of modules; an empty value is as no value.
    environment = {"XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": ""}
    with serve(words, "/v2/health/live", environment, folder) as url:
        first_answer = time.monotonic() - began
        while not _is_ready(url):
            time.sleep(0.02)
        ready = time.monotonic() - began
        [server] = psutil.Process().children()
        workers = server.children(recursive=True)
        processes = [server, *workers]
        cpu = cpu_seconds(processes)
        parent, worker = measure_memory([server]), measure_memory(workers)
        requests = bodies("v1", sample(), 1)
        asyncio.run(drive(url + "/v1/models/model:predict", requests, 8, 1, _LOAD_SECONDS))
        return Start(first_answer, ready, cpu, parent, worker, measure_memory(processes))


def _is_ready(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url + "/v2/health/ready", timeout=5):
        return True
    return False


def make_table(first: dict[str, list[Start]], later: dict[str, list[Start]]) -> str:
    """The medians of each checkout, and the ratios of this one to the other."""
    names = [field.name for field in fields(Start)]
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" + "|--:" * len(names) + "|"]
    for kind, starts in (("first start", first), ("later starts", later)):
        for checkout, found in starts.items():
            figures = [f"{median(getattr(one, name) for one in found):.1f}" for name in names]
            lines.append(f"| {kind}, {checkout} | {' | '.join(figures)} |")
    if len(later) == 2:
        (_, here), (other, there) = later.items()
        ratios = [
            str(Ratio.of([getattr(one, name) for one in here], [getattr(one, name) for one in there])) for name in names
        ]
        lines.append(f"| later starts / {other} | {' | '.join(ratios)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
