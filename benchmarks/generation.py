"""Measure generation through this server against vLLM's own server, in one run on one machine, in ten minutes.

    make bench-generation
    make bench-generation BENCH_GENERATION="--callers 1 8 --minutes 5"

The model is SmolLM2-135M-Instruct, the requests are streamed completions. "vLLM" has the flags, the data type and the
environment that this server chooses on a CPU. A trial says how many tokens and rounds fit the time. A busy process a
core, in a session of its own as another container is, runs beside what is measured "beside busy".
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median

import aiohttp
import orjson

from benchmarks.machine import describe, machine
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import ROOT, serve
from benchmarks.texts import sample_texts
from demo.smollm import main as write_smollm
from runners.core.arguments import Arguments
from runners.core.machine import count_cores
from runners.generator.vllm.dtype import choose_dtype

_MOST_TOKENS, _LEAST_TOKENS, _TRIAL_TOKENS = 64, 8, 8
_LEAST_ROUNDS, _MOST_ROUNDS = 4, 10
# A trial that was faster by chance must not say that tokens take no time.
_LEAST_TOKEN_SECONDS = 1e-4
_TIMEOUT = aiohttp.ClientTimeout(total=300)
_FLAGS = ["--kv-cache-memory-bytes=1G", "--max-model-len=2048"]
_CPU_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(count_cores()), "GOMP_SPINCOUNT": "1000"
}  # fmt: skip
_OURS, _VLLM, _TRANSFORMERS = "server", "vLLM", "server on transformers"
_BUSY = ", beside busy"
_BUSY_PROGRAM = """
import os, sys, threading
def end():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end).start()
while True:
    pass
"""


@dataclass(frozen=True)
class Measured:
    """What one load measured; times in milliseconds."""

    tokens_a_second: float
    first_token: float
    errors: int


@dataclass(frozen=True)
class Plan:
    """How much of each load fits the time.

    Attributes:
        tokens: tokens of an answer.
    """

    tokens: int
    rounds: int

    @classmethod
    def of(cls, prompt_seconds: float, token_seconds: float, seconds: float) -> Plan:
        """
        Args:
            prompt_seconds: what the prompts of a round of all loads take.
            token_seconds: what each token of the answers adds to a round.
            seconds: the time for all rounds.
        """
        token_seconds = max(token_seconds, _LEAST_TOKEN_SECONDS)
        fitting = int((seconds / _LEAST_ROUNDS - prompt_seconds) / token_seconds)
        tokens = min(max(fitting, _LEAST_TOKENS), _MOST_TOKENS)
        rounds = int(seconds / (prompt_seconds + tokens * token_seconds))
        return cls(tokens, min(max(rounds, 1), _MOST_ROUNDS))


Results = dict[int, dict[str, list[Measured]]]
Load = Callable[[int], Measured]


def main() -> None:
    options = _parse()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "smollm"
        write_smollm(folder)
        with contextlib.ExitStack() as running:
            urls = {name: running.enter_context(server) for name, server in _servers(folder).items()}
            # Tables are written, and servers end, in the last part.
            results, plan = _measure_all(urls, options.callers, started + 57 * options.minutes)
    options.output.mkdir(parents=True, exist_ok=True)
    rows = {load: {name: [vars(one) for one in found] for name, found in by.items()} for load, by in results.items()}
    facts = machine()
    (options.output / "generation.json").write_text(json.dumps({**facts, **vars(plan), "generation": rows}, indent=1))
    table = f"{describe(facts)}; {plan.tokens} tokens a request, {plan.rounds} rounds\n\n{make_table(results)}"
    (options.output / "generation.md").write_text(table)
    sys.stdout.write(f"{table}\n{time.monotonic() - started:.0f} s\n")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-generation")
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--minutes", type=float, default=10, help="for all, with the start of the servers")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    return parser.parse_args()


def _servers(folder: Path) -> dict[str, contextlib.AbstractContextManager[str]]:
    ours = [sys.executable, "launch.py", "--http_port={port}", f"--model_dir={folder}"]
    dtype = choose_dtype(Arguments.model_validate({"model_dir": str(folder)})) or "auto"
    vllm = ["benchmarks.vllm_server", f"--model={folder}", "--port={port}", "--enforce-eager", f"--dtype={dtype}"]
    return {
        _OURS: serve([*ours, "--backend=vllm", *_FLAGS]),
        _VLLM: serve([sys.executable, "-m", *vllm, *_FLAGS], "/health", _CPU_ENVIRONMENT),
        _TRANSFORMERS: serve([*ours, "--backend=huggingface", "--max_length=2048"]),
    }


def _measure_all(urls: dict[str, str], callers: list[int], deadline: float) -> tuple[Results, Plan]:
    prompts = sample_texts(1920, lambda text: len(text.split()))

    def drive(url: str, number: int, tokens: int) -> Measured:
        return asyncio.run(_drive(f"{url}/v1/completions", prompts, number, tokens))

    def drive_beside_busy(url: str, number: int, tokens: int) -> Measured:
        with _busy_neighbours():
            return drive(url, number, tokens)

    loads: dict[int, dict[str, Load]] = {}
    for number in callers:
        loads[number] = {name: partial(drive, url, number) for name, url in urls.items()}
        for name in (_OURS, _TRANSFORMERS):
            loads[number][name + _BUSY] = partial(drive_beside_busy, urls[name], number)
    for number, sides in loads.items():
        # The first answers of a server are slower.
        for name in urls:
            sides[name](1)
        sys.stderr.write(f"{number} callers are ready\n")
    began = time.monotonic()
    tried = [load(_TRIAL_TOKENS) for sides in loads.values() for load in sides.values()]
    now = time.monotonic()
    prompt_seconds = sum(one.first_token for one in tried) / 1000
    token_seconds = (now - began - prompt_seconds) / _TRIAL_TOKENS
    plan = Plan.of(prompt_seconds, token_seconds, max(1.0, deadline - now))
    results: Results = {number: {} for number in loads}
    turns = {
        (number, name): partial(load, plan.tokens) for number, sides in loads.items() for name, load in sides.items()
    }
    for (number, name), measured in take_turns(turns, plan.rounds).items():
        results[number][name] = measured
    return results, plan


@contextlib.contextmanager
def _busy_neighbours() -> Iterator[None]:
    """A busy process a core, which ends with this one."""
    words = [sys.executable, "-c", _BUSY_PROGRAM]
    busy = [subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True) for _ in range(count_cores())]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


async def _drive(url: str, prompts: list[str], callers: int, tokens: int) -> Measured:
    """So many completions at once, streamed."""
    first_tokens: list[float] = []
    errors = 0
    turn = count()

    async def call(session: aiohttp.ClientSession) -> None:
        nonlocal errors
        body = {
            "prompt": prompts[next(turn) % len(prompts)], "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
            "stream": True,
        }  # fmt: skip
        sent = time.perf_counter()
        first: float | None = None
        headers = {"content-type": "application/json"}
        try:
            async with session.post(url, data=orjson.dumps(body), headers=headers) as response:
                async for line in response.content:
                    if first is None and line.startswith(b"data:"):
                        first = time.perf_counter()
        except (aiohttp.ClientError, TimeoutError):
            first = None
        if first is None or response.status != 200:
            errors += 1
        else:
            first_tokens.append(1000 * (first - sent))

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_TIMEOUT) as session:
        start = time.perf_counter()
        await asyncio.gather(*(call(session) for _ in range(callers)))
        seconds = time.perf_counter() - start
    if not first_tokens:
        raise SystemExit(f"error: {url} answers no request")
    return Measured((callers - errors) * tokens / seconds, median(first_tokens), errors)


def make_table(results: Results) -> str:
    lines = ["| | callers | tokens/s | first token ms | errors |", "|---|--:|--:|--:|--:|"]
    for callers, sides in results.items():
        for name, found in sides.items():
            speed, first = median(_speeds(found)), median(one.first_token for one in found)
            lines.append(f"| {name} | {callers} | {speed:.1f} | {first:.0f} | {sum(one.errors for one in found)} |")
    lines += ["", "| | callers | median (range) | mean, 95 % interval |", "|---|--:|--:|--:|"]
    pairs = [(_OURS, _VLLM), (_TRANSFORMERS, _OURS), (_OURS + _BUSY, _OURS), (_TRANSFORMERS + _BUSY, _TRANSFORMERS)]
    for above, below in pairs:
        for callers, sides in results.items():
            ratio = Ratio.of(_speeds(sides[above]), _speeds(sides[below]))
            interval = "" if ratio.interval is None else f", {ratio.interval[0]:.2f} to {ratio.interval[1]:.2f}"
            lines.append(f"| {above} / {below} | {callers} | {ratio} | {ratio.mean:.2f}{interval} |")
    return "\n".join([*lines, ""])


def _speeds(found: list[Measured]) -> list[float]:
    return [one.tokens_a_second for one in found]


if __name__ == "__main__":
    main()
