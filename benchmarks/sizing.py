"""What a server of each model size takes and gives: memory, texts a second and latency at 32 callers.

    make bench-sizing
    make bench-sizing BENCH_SIZING="--sizes DistilBERT BERT-base --seconds 20"
    make bench-sizing BENCH_SIZING=--write

The models have random weights: speed and memory do not depend on their values. `--write` writes the table into
docs/how-to/operations.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from safetensors import safe_open

from benchmarks.cpu import serving
from benchmarks.load import bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.memory import measure_memory
from benchmarks.models import SIZES, make_sized_model
from benchmarks.run import ROOT, sample, serve, serve_words

PAGE = ROOT / "docs/how-to/operations.md"
MARK = "<!-- Written by `make bench-sizing`; do not edit below. -->\n"
_CALLERS = 32
_WARM_UP_SECONDS = 2.0
_HEAD = (
    "| model size | parameters | memory when ready | memory under load | texts/s | p50 | p99 |\n"
    "|---|--:|--:|--:|--:|--:|--:|\n"
)


@dataclass(frozen=True)
class Sizing:
    """One model size.

    Attributes:
        parameters: of the model.
        ready: megabytes of all processes (PSS) when the server is ready.
        under_load: the same at the end of the load.
        texts_a_second, p50, p99: of the load; latencies in milliseconds.
    """

    size: str
    parameters: int
    ready: float
    under_load: float
    texts_a_second: float
    p50: float
    p99: float

    def row(self) -> str:
        cells = (
            self.size,
            f"{self.parameters / 1e6:.0f} million",
            f"{self.ready:.0f} MB",
            f"{self.under_load:.0f} MB",
            f"{self.texts_a_second:.1f}",
            f"{self.p50:.0f} ms",
            f"{self.p99:.0f} ms",
        )
        return f"| {' | '.join(cells)} |\n"


def main(words: Sequence[str] | None = None, page: Path = PAGE) -> None:
    options = _parse(words)
    texts = sample()
    facts = describe(machine())
    with tempfile.TemporaryDirectory() as scratch:
        found = [measure(size, Path(scratch) / size, texts, options) for size in options.sizes]
    table = make_table(facts, found, options.dtype)
    sys.stdout.write(table)
    if options.write:
        write_page(page, table)


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-sizing")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--seconds", type=float, default=15.0, help="the length of each load")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--write", action="store_true", help="write the table into docs/how-to/operations.md")
    return parser.parse_args(words)


def measure(size: str, folder: Path, texts: list[str], options: argparse.Namespace) -> Sizing:
    """Start the server of a model of this size, load it and stop it.

    Raises:
        SystemExit: a request failed.
    """
    model = make_sized_model(size, folder)
    requests = bodies("v1", texts, 1)
    with serve(serve_words(model, options.dtype)) as url:
        processes = find_processes(url)
        ready = measure_memory(processes)
        address = f"{url}/v1/models/model:predict"
        asyncio.run(drive(address, requests, _CALLERS, 1, min(_WARM_UP_SECONDS, options.seconds)))
        load = asyncio.run(drive(address, requests, _CALLERS, 1, options.seconds))
        if load.errors:
            raise SystemExit(f"error: {load.errors} requests failed")
        under_load = measure_memory(processes)
    return Sizing(size, count_parameters(model), ready, under_load, load.texts_a_second, load.p50, load.p99)


def find_processes(url: str) -> list[psutil.Process]:
    """All processes of the server that this one has started at a URL, whichever of them listens."""
    listening = {*serving(url)}
    trees = [[child, *child.children(recursive=True)] for child in psutil.Process().children()]
    [processes] = [tree for tree in trees if listening & {*tree}]
    return processes


def count_parameters(model: Path) -> int:
    """Numbers in the weights of a folder."""
    total = 0
    with safe_open(model / "model.safetensors", framework="np") as weights:
        for name in weights.keys():  # noqa: SIM118, it is no mapping
            count = 1
            for length in weights.get_slice(name).get_shape():
                count *= length
            total += count
    return total


def make_table(facts: str, found: Sequence[Sizing], dtype: str) -> str:
    """Markdown: the machine, what was measured, and a row for each size."""
    explanation = (
        f"`make bench-sizing`, sequence classification in {dtype}, {_CALLERS} callers of one text each, 37 tokens on\n"
        "average; one worker. Memory is that of all processes together.\n"
    )
    return f"{facts}\n\n{explanation}\n{_HEAD}{''.join(each.row() for each in found)}"


def write_page(page: Path, table: str) -> None:
    """
    Raises:
        ValueError: the page has lost the line that its generated part follows.
    """
    text, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line {MARK!r}")
    page.write_text(f"{text}{MARK}\n{table}", encoding="utf-8")


if __name__ == "__main__":
    main()
