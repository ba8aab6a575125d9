"""Measure generation through this server against vLLM's own server, in one run on one machine.

    make bench-generation
    make bench-generation BENCH_GENERATION="--callers 1 8 --seconds 30 --no-defaults"

The model is SmolLM2-135M-Instruct, the requests are streamed completions of 64 tokens. "vLLM" has the flags and the
environment that this server chooses on a CPU, "vLLM by default" has neither.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean, median

import aiohttp
import orjson

from benchmarks.machine import describe, machine
from benchmarks.run import ROOT, serve
from benchmarks.texts import sample_texts
from demo.smollm import main as write_smollm
from runners.core.machine import count_cores

_TOKENS = 64
_FLAGS = ["--kv-cache-memory-bytes=1G", "--max-model-len=2048"]
_CPU_FLAGS = ["--enforce-eager"]
_CPU_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(count_cores())}
_OURS, _VLLM, _DEFAULT, _TRANSFORMERS = "server", "vLLM", "vLLM by default", "server on transformers"


@dataclass(frozen=True)
class Measured:
    """What one load measured; times in milliseconds."""

    callers: int
    tokens_a_second: float
    first_token: float
    errors: int


def main() -> None:
    options = _parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm"
        write_smollm(folder)
        results = _measure_all(options, folder)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = {name: [vars(load) for load in loads] for name, loads in results.items()}
    (options.output / "generation.json").write_text(json.dumps({**machine(), "generation": rows}, indent=1))
    table = _table(results)
    (options.output / "generation.md").write_text(table)
    sys.stdout.write(f"{table}\n{time.monotonic() - started:.0f} s\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-generation")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10, help="for each measurement, after a warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each server, in turn; the best counts")
    parser.add_argument("--no-defaults", action="store_true", help="leave out vLLM by default, which compiles first")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    return parser.parse_args()


def _measure_all(options: argparse.Namespace, folder: Path) -> dict[str, list[Measured]]:
    ours = [sys.executable, "launch.py", "--http_port={port}", f"--model_dir={folder}"]
    vllm = [sys.executable, "-m", "benchmarks.vllm_server", f"--model={folder}", "--port={port}", *_FLAGS]
    prompts = sample_texts(1920, lambda text: len(text.split()))
    results: dict[str, list[Measured]] = {}

    def measure(urls: dict[str, str], callers: list[int], rounds: int) -> None:
        for number in callers:
            found: dict[str, list[Measured]] = {}
            # In turn, and in turn first, so that a noisy neighbour hurts both.
            for turn in range(rounds):
                for name, url in list(urls.items())[:: -1 if turn % 2 else 1]:
                    load = asyncio.run(_drive(f"{url}/v1/completions", prompts, number, options.seconds))
                    found.setdefault(name, []).append(load)
            for name, loads in found.items():
                results.setdefault(name, []).append(best := _best(loads))
                # Seen also where the rest takes too long.
                sys.stderr.write(f"{name}: {vars(best)}\n")

    with contextlib.ExitStack() as running:
        urls = {
            _OURS: running.enter_context(serve([*ours, *_FLAGS])),
            _VLLM: running.enter_context(serve([*vllm, *_CPU_FLAGS], "/health", _CPU_ENVIRONMENT)),
        }
        measure(urls, options.callers, options.rounds)
        if not options.no_defaults:
            urls = {_OURS: urls[_OURS], _DEFAULT: running.enter_context(serve(vllm, "/health", _without_choices()))}
            again = results.pop(_OURS)
            measure(urls, options.callers[-1:], options.rounds)
            results[f"{_OURS}, again"] = results.pop(_OURS)
            results[_OURS] = again
    with serve([*ours, "--backend=huggingface", "--max_length=2048"]) as url:
        measure({_TRANSFORMERS: url}, options.callers, options.rounds)
    return results


def _without_choices() -> dict[str, str]:
    """The environment without what changes vLLM's own."""
    return {"OMP_NUM_THREADS": os.environ["OMP_NUM_THREADS"]} if "OMP_NUM_THREADS" in os.environ else {}


def _best(loads: list[Measured]) -> Measured:
    return Measured(
        loads[0].callers,
        max(load.tokens_a_second for load in loads),
        min(load.first_token for load in loads),
        sum(load.errors for load in loads),
    )


async def _drive(url: str, prompts: list[str], callers: int, seconds: float) -> Measured:
    """Closed loop: each caller streams its next completion when it has the last, and measures one at least.

    Throughput is by Little's law.
    """
    durations: list[float] = []
    first_tokens: list[float] = []
    errors = 0
    turn = count()
    start = time.perf_counter()
    warm, end = start + seconds / 4, start + seconds * 1.25

    async def call(session: aiohttp.ClientSession) -> None:
        nonlocal errors
        measured = False
        while (sent := time.perf_counter()) < end or not measured:
            body = {
                "prompt": prompts[next(turn) % len(prompts)], "max_tokens": _TOKENS, "temperature": 0,
                "ignore_eos": True, "stream": True,
            }  # fmt: skip
            first: float | None = None
            async with session.post(
                url, data=orjson.dumps(body), headers={"content-type": "application/json"}
            ) as response:
                async for line in response.content:
                    if first is None and line.startswith(b"data:"):
                        first = time.perf_counter()
            if first is None or response.status != 200:
                errors += 1
            measured |= sent >= warm
            if measured and first is not None:
                first_tokens.append(1000 * (first - sent))
                durations.append(time.perf_counter() - sent)

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        # All finish what they have begun, so that long answers count like short ones.
        await asyncio.gather(*(call(session) for _ in range(callers)))
    return Measured(callers, callers * _TOKENS / fmean(durations), median(first_tokens), errors)


def _table(results: dict[str, list[Measured]]) -> str:
    lines = [describe(machine()), ""]
    lines += ["| | callers | tokens/s | first token ms | errors |", "|---|--:|--:|--:|--:|"]
    for name, loads in results.items():
        for load in loads:
            lines.append(
                f"| {name} | {load.callers} | {load.tokens_a_second:.1f} | {load.first_token:.0f} | {load.errors} |"
            )
    lines += ["", "| | callers | tokens/s | first token |", "|---|--:|--:|--:|"]
    for ours, theirs in ((_OURS, _VLLM), (f"{_OURS}, again", _DEFAULT)):
        for own, other in zip(results.get(ours, []), results.get(theirs, []), strict=False):
            lines.append(
                f"| {_OURS} / {theirs} | {own.callers} | {own.tokens_a_second / other.tokens_a_second:.2f} "
                f"| {own.first_token / other.first_token:.2f}, {own.first_token - other.first_token:+.1f} ms |"
            )
    first, *others = results[_TRANSFORMERS]
    for load in others:
        ratio = load.tokens_a_second / first.tokens_a_second
        lines.append(f"| {_TRANSFORMERS}, {load.callers} callers / {first.callers} | | {ratio:.2f} | |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
