"""What answers cost: options against plain answers, and zero-shot classification against a loop of a pipeline.

    make bench-answers
    make bench-answers BENCH_ANSWERS="--parts options --rounds 5 --seconds 6"

Both sides of a comparison are loaded in turn; a ratio is the median over the rounds of one side to the other, with its
range, and the CPU time is the server's own, of all its processes, for each text.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.child import start_child
from benchmarks.cpu import measure, serving
from benchmarks.load import bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.models import NLI_SIZES, make_model, make_nli_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import sample, serve, serve_words

_PATH = "/v1/models/model:predict"
_CALLERS = 32
# With random weights every token is of some entity, which is the most there is to answer.
_OPTIONS: dict[str, dict[str, Any]] = {
    "sequence_classification": {"labels": True, "top_k": 5},
    "token_classification": {"aggregation_strategy": "simple"},
}
_LABELS = [
    "programming", "mathematics", "networking", "files", "text", "dates", "testing", "concurrency", "security", "email",
]  # fmt: skip


def main() -> None:
    options = _parse(sys.argv[1:])
    sys.stdout.write(describe(machine()) + "\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.parts:
            _PARTS[part](Path(scratch), options.rounds, options.seconds)


def _compare_options(scratch: Path, rounds: int, seconds: float) -> None:
    _row("", "options", "plain texts/s", "with options", "options / plain", "CPU options / plain")
    _row("---", "---", *["--:"] * 4)
    texts = sample()
    for task, parameters in _OPTIONS.items():
        sides = {"plain": bodies("v1", texts, 1), "options": bodies("v1", texts, 1, parameters)}
        with serve(serve_words(make_model(task, scratch / task), "float32")) as url:
            measured = take_turns(
                {side: functools.partial(_load, url, requests, _CALLERS, seconds) for side, requests in sides.items()},
                rounds,
            )
        speeds = {side: [speed for speed, _ in loads] for side, loads in measured.items()}
        costs = {side: [cost for _, cost in loads] for side, loads in measured.items()}
        _row(
            task,
            f"`{json.dumps(parameters)}`",
            *(f"{median(speeds[side]):.1f}" for side in sides),
            str(Ratio.of(speeds["options"], speeds["plain"])),
            str(Ratio.of(costs["options"], costs["plain"])),
        )


def _compare_zero_shot(scratch: Path, rounds: int, seconds: float) -> None:
    _row("model", "pipeline texts/s", "1 caller", "/ pipeline", f"{_CALLERS} callers", "/ pipeline")
    _row("---", *["--:"] * 5)
    texts = sample()
    requests = bodies("v1", texts, 1, {"candidate_labels": _LABELS})
    for size in NLI_SIZES:
        folder = make_nli_model(size, scratch / size)
        with serve(serve_words(folder, "float32")) as url, _pipeline_loop(folder, texts, scratch) as run_loop:
            sides: dict[str, Callable[[], float]] = {"loop": functools.partial(run_loop, seconds)}
            for callers in (1, _CALLERS):
                sides[f"{callers}"] = functools.partial(_speed, url, requests, callers, seconds)
            measured = take_turns(sides, rounds)
        loop = measured.pop("loop")
        figures = [(f"{median(speeds):.2f}", str(Ratio.of(speeds, loop))) for speeds in measured.values()]
        _row(f"{size}-size", f"{median(loop):.2f}", *(figure for pair in figures for figure in pair))


def _speed(url: str, requests: list[bytes], callers: int, seconds: float) -> float:
    return _load(url, requests, callers, seconds)[0]


def _load(url: str, requests: list[bytes], callers: int, seconds: float) -> tuple[float, float]:
    """Texts a second, and the server's CPU microseconds a text."""
    cost, load = measure(serving(url), drive(url + _PATH, requests, callers, 1, seconds))
    return load.texts_a_second, cost


@contextlib.contextmanager
def _pipeline_loop(folder: Path, texts: list[str], scratch: Path) -> Iterator[Callable[[float], float]]:
    """What runs the loop for so many seconds and says how many texts a second it did."""
    request = scratch / "request.json"
    request.write_text(json.dumps({"texts": texts, "labels": _LABELS}))
    words = ["benchmarks.zero_shot_loop", str(folder), str(request)]
    with start_child(words, "the pipeline did not load") as send:
        yield lambda seconds: float(send(str(seconds)))


_PARTS: dict[str, Callable[[Path, int, float], None]] = {"options": _compare_options, "zero-shot": _compare_zero_shot}


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-answers", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=[*_PARTS])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="for each measurement, after a warm-up")
    return parser.parse_args(words)


def _row(*cells: str) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
