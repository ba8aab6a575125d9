"""Bulk work: `predict` on a file of texts, alone and with Ray's workers, against a server that many callers ask.

    make bench-bulk
    make bench-bulk BENCH_BULK="--models BERT-base --texts 2000 --workers"

Each side answers the same texts, once, and they take turns. A ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import orjson

from benchmarks.load import ask_once, bodies
from benchmarks.machine import describe, machine
from benchmarks.models import SIZES, make_sized_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import ROOT, sample, serve, serve_words

# The real model of `make serve`, which is as large as MiniLM-L6.
_SENTIMENT = "sentiment"
_REAL = ROOT / "demo/models" / _SENTIMENT
_DTYPE = "float32"
_SERVER, _PREDICT = "server", "predict"
# What `predict` says at its end has the seconds without the load of the model.
_SUMMARY = re.compile(r"([\d,]+) rows? in ([\d,.]+) s")
_HEAD = "| | texts/s | texts/s with the start | CPU of a text |\n|---|--:|--:|--:|\n"


@dataclass(frozen=True)
class Work:
    """What a side took for all texts, in seconds.

    Attributes:
        processing: from the first text to the last answer, without the load of the model.
        whole: from the command to the last answer.
        cpu: of all processes of the side, with the load of the model, but without the clients of a server; None of
            Ray's, whose processes are no children of this one.
    """

    processing: float
    whole: float
    cpu: float | None


def main() -> None:
    options = _parse(sys.argv[1:])
    texts = sample(options.texts)
    sys.stdout.write(f"{describe(machine())}\n")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "texts.jsonl"
        source.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
        for name in options.models:
            folder = _REAL if name == _SENTIMENT else make_sized_model(name, Path(scratch) / name)
            measured = take_turns(_list_sides(folder, texts, source, options), options.rounds)
            sys.stdout.write(f"\n{name}, {len(texts)} texts, {_DTYPE}\n\n{make_table(measured, len(texts))}")
            sys.stdout.flush()


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-bulk")
    parser.add_argument("--models", nargs="+", choices=[_SENTIMENT, *SIZES], default=[_SENTIMENT])
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--callers", type=int, default=64, help="of the server, one text a request")
    parser.add_argument("--workers", nargs="*", type=int, default=[1, 2], help="of Ray; none leaves Ray out")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in turn with the others")
    return parser.parse_args(words)


def _list_sides(
    folder: Path, texts: list[str], source: Path, options: argparse.Namespace
) -> dict[str, Callable[[], Work]]:
    sides: dict[str, Callable[[], Work]] = {
        _SERVER: partial(measure_server, folder, texts, options.callers),
        _PREDICT: partial(measure_predict, folder, source),
    }
    for count in options.workers:
        words = ("--ray", f"--workers={count}")
        sides[f"{_PREDICT} {' '.join(words)}"] = partial(measure_ray, folder, source, words)
    return sides


def measure_server(folder: Path, texts: list[str], callers: int) -> Work:
    """Start a server, ask it each text once and stop it."""
    requests = bodies("v1", texts, 1)
    began, before = time.perf_counter(), os.times()
    with serve(serve_words(folder, _DTYPE)) as url:
        ready = time.perf_counter()
        asyncio.run(ask_once(f"{url}/v1/models/model:predict", requests, callers))
        end = time.perf_counter()
    return Work(end - ready, end - began, _children_seconds(before))


def measure_predict(folder: Path, source: Path, words: Sequence[str] = ()) -> Work:
    """Run `predict` on a file.

    Raises:
        SystemExit: it failed, or did not answer each row.
    """
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "answers.jsonl"
        command = [sys.executable, "launch.py", "predict", f"--model_dir={folder}", f"--dtype={_DTYPE}"]
        began, before = time.perf_counter(), os.times()
        # As a server's worker: Linux shares busy cores among sessions, and this one's has the clients.
        ended = subprocess.run(
            [*command, f"--input={source}", f"--output={output}", *words],
            cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, start_new_session=True,
        )  # fmt: skip
        whole = time.perf_counter() - began
        found = _SUMMARY.search(ended.stderr)
        if ended.returncode or found is None:
            raise SystemExit(f"error: predict ended with {ended.returncode}:\n{ended.stderr}")
        with source.open("rb") as asked, output.open("rb") as answered:
            if sum(1 for _ in asked) != sum(b'"prediction":' in line for line in answered):
                raise SystemExit("error: predict did not answer each row")
    return Work(float(found[2].replace(",", "")), whole, _children_seconds(before))


def measure_ray(folder: Path, source: Path, words: Sequence[str]) -> Work:
    """Run `predict` on Ray; its start is that of a job of one row."""
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / source.name
        with source.open("rb") as rows:
            first.write_bytes(next(rows))
        start = measure_predict(folder, first, words).whole
    work = measure_predict(folder, source, words)
    return Work(work.whole - start, work.whole, None)


def _children_seconds(before: os.times_result) -> float:
    """CPU seconds of the processes that have been started and have ended since then."""
    now = os.times()
    return now.children_user + now.children_system - before.children_user - before.children_system


def make_table(measured: Mapping[str, Sequence[Work]], texts: int) -> str:
    """Markdown: medians of each side, and the ratios of the others to the first one's texts a second."""
    rows = []
    for name, works in measured.items():
        processing, whole = (median(texts / seconds for seconds in each) for each in _times(works))
        seconds = [work.cpu for work in works if work.cpu is not None]
        cpu = f"{1000 * median(seconds) / texts:.2f} ms" if seconds else ""
        rows.append(f"| {name} | {processing:.1f} | {whole:.1f} | {cpu} |\n")
    return f"{_HEAD}{''.join(rows)}\n{''.join(_list_ratios(measured))}"


def _times(works: Sequence[Work]) -> tuple[list[float], list[float]]:
    return [work.processing for work in works], [work.whole for work in works]


def _list_ratios(measured: Mapping[str, Sequence[Work]]) -> list[str]:
    """Ratios of texts a second: of each side to the server, and of Ray's workers to the first number of them."""
    server, _, *of_ray = measured
    pairs = [(name, server) for name in measured if name != server] + [(name, of_ray[0]) for name in of_ray[1:]]
    lines = []
    for above, below in pairs:
        # Seconds are the reciprocals of texts a second.
        (processing, whole), (other, other_whole) = _times(measured[below]), _times(measured[above])
        lines.append(
            f"- {above} / {below}: {Ratio.of(processing, other)}, with the start {Ratio.of(whole, other_whole)}\n"
        )
    return lines


if __name__ == "__main__":
    main()
