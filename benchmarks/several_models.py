"""Several models in one server: what they reach together, what a flood of one costs the other, and what loads leave.

    make bench-models
    make bench-models BENCH_MODELS="--rounds 5 --other ../another-checkout"

The two models are of DistilBERT's size. With another checkout, a server of one model of each is started, and the ratios
of this one to the other are those of pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.closed_loop import Load
from benchmarks.cpu import serving, wait_until_idle
from benchmarks.load import bodies, drive, drive_grpc
from benchmarks.machine import describe, machine
from benchmarks.memory import measure_memory
from benchmarks.models import make_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import ROOT, count_tokens, free_port, sample, serve, serve_words
from runners.modeling.loading import BATCH_TOKENS_ON_CPU

_NAMES = ("a", "b")
_FLOOD_CALLERS = 256
_FULL_BATCHES_CALLERS = 64
# A single caller beside a flood has few answers a second.
_FLOOD_FACTOR = 6
_FLOOD_BEGINS_SECONDS = 60.0
_CYCLES = 10
_GRPC_CALLERS = 16


def main() -> None:
    options = _parse(sys.argv[1:])
    texts = sample()
    if options.flood is not None:
        asyncio.run(_load(options.flood, texts, _FLOOD_CALLERS, seconds=float("inf")))
        return
    sys.stdout.write(f"{describe(machine())}\n\n")
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model("sequence_classification", Path(scratch) / "model")
        with _serve_both(Path(scratch), model) as url:
            _compare_throughput(url, texts, options)
            _measure_flood(url, texts, options)
            _repeat_loads(url, texts)
        if options.other is not None:
            _compare_checkouts(model, texts, options)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="the length of each load")
    parser.add_argument("--other", type=Path, help="another checkout, whose server of one model is compared")
    # This program starts itself with it, so that the flood's clients are in a process of their own.
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    return parser.parse_args(words)


@contextlib.contextmanager
def _serve_both(scratch: Path, model: Path) -> Iterator[str]:
    models = [{"name": name, "model_dir": str(model)} for name in _NAMES]
    path = scratch / "models.json"
    path.write_text(json.dumps({"enable_repository": True, "models": models}))
    words = [sys.executable, "-m", "bentoml", "serve", ".", "--port={port}", f"--arg=models_file={path}"]
    with serve(words) as url:
        yield url


async def _load(url: str, texts: list[str], callers: int, seconds: float) -> Load:
    found = await drive(url, bodies("v1", texts, 1), callers, 1, seconds)
    if found.errors:
        raise SystemExit(f"error: {found.errors} requests failed")
    return found


def _path(url: str, name: str) -> str:
    return f"{url}/v1/models/{name}:predict"


def _compare_throughput(url: str, texts: list[str], options: argparse.Namespace) -> None:
    """Two models under 16 callers each against one under 32."""

    async def load_both() -> float:
        loads = await asyncio.gather(*(_load(_path(url, name), texts, 16, options.seconds) for name in _NAMES))
        return sum(load.texts_a_second for load in loads)

    async def load_one() -> float:
        return (await _load(_path(url, _NAMES[0]), texts, 32, options.seconds)).texts_a_second

    found = take_turns(
        {"both": lambda: asyncio.run(load_both()), "one": lambda: asyncio.run(load_one())}, options.rounds
    )
    sys.stdout.write(
        f"two models of 16 callers each / one model of 32: {Ratio.of(found['both'], found['one'])}; "
        f"texts/s {_list(found['both'])} and {_list(found['one'])}\n"
    )


def _measure_flood(url: str, texts: list[str], options: argparse.Namespace) -> None:
    """The latency of a single caller of one model while 256 callers flood the other, in batches of the other."""
    tokens = count_tokens(texts) / len(texts)
    for _ in range(options.rounds):
        alone = asyncio.run(_load(_path(url, _NAMES[1]), texts, _FULL_BATCHES_CALLERS, options.seconds))
        # The seconds of a full batch.
        batch = 1000 * BATCH_TOKENS_ON_CPU / tokens / alone.texts_a_second
        with _flood(url) as flood:
            _wait_for_flood(url, flood)
            load = asyncio.run(_load(_path(url, _NAMES[0]), texts, 1, _FLOOD_FACTOR * options.seconds))
        sys.stdout.write(
            f"one caller beside {_FLOOD_CALLERS} of the other model, whose batches take {batch:.0f} ms alone: p50 "
            f"{load.p50:.0f} ms, p99 {load.p99:.0f} ms, {load.p50 / batch:.1f} and {load.p99 / batch:.1f} batches; "
            f"{load.requests} requests\n"
        )


@contextlib.contextmanager
def _flood(url: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "benchmarks.several_models", f"--flood={_path(url, _NAMES[1])}"]
    flood = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield flood
        _check_flood(flood)
    finally:
        flood.kill()
        flood.wait()


def _check_flood(flood: subprocess.Popen[bytes]) -> None:
    if flood.poll() is not None:
        raise SystemExit(f"error: the flood has ended with the code {flood.returncode}")


def _wait_for_flood(url: str, flood: subprocess.Popen[bytes]) -> None:
    """Wait until the other model has waiting texts, which it never has if it refuses the flood."""
    deadline = time.monotonic() + _FLOOD_BEGINS_SECONDS
    while time.monotonic() < deadline:
        _check_flood(flood)
        with urllib.request.urlopen(f"{url}/metrics") as response:
            lines = response.read().decode().splitlines()
        waiting = [line for line in lines if line.startswith(f'runtime_waiting_texts{{model_name="{_NAMES[1]}"')]
        if waiting and float(waiting[0].split()[-1]) > _FLOOD_CALLERS / 4:
            return
        time.sleep(0.1)
    raise SystemExit(f"error: nothing waits {_FLOOD_BEGINS_SECONDS:.0f} s after the flood began")


def _repeat_loads(url: str, texts: list[str]) -> None:
    """The memory of the worker after each of ten cycles of unloading and loading a model, and using it."""
    [worker] = [process for process in serving(url) if "--worker-id" in process.cmdline()]
    sizes = []
    for _ in range(_CYCLES + 1):
        for verb in ("unload", "load"):
            request = urllib.request.Request(f"{url}/v2/repository/models/{_NAMES[1]}/{verb}", method="POST")
            urllib.request.urlopen(request, timeout=120).close()
        asyncio.run(_load(_path(url, _NAMES[1]), texts, 4, 0.5))
        sizes.append(measure_memory([worker]))
    sys.stdout.write(
        f"memory after {_CYCLES} further cycles of unload, load and requests / after the first: "
        f"{sizes[-1] / sizes[0]:.3f}; MB {_list(sizes)}\n"
    )


def _compare_checkouts(model: Path, texts: list[str], options: argparse.Namespace) -> None:
    """One model in this checkout against one in another, over REST and gRPC."""
    with contextlib.ExitStack() as servers:
        sides: dict[str, tuple[str, int]] = {}
        for name, folder in (("here", ROOT), ("there", options.other)):
            port = free_port()
            environment = {"RUNTIME_ENABLE_GRPC": "1", "RUNTIME_GRPC_PORT": str(port)}
            server = serve(serve_words(model, "float32"), environment=environment, folder=folder)
            sides[name] = servers.enter_context(server), port
        wires = {
            f"REST, {callers} callers": partial(_drive_rest, texts, callers, options.seconds) for callers in (1, 16, 32)
        }
        wires[f"gRPC, {_GRPC_CALLERS} callers"] = partial(_drive_grpc, texts, options.seconds)
        for wire, measure in wires.items():
            found = take_turns({name: partial(measure, *side) for name, side in sides.items()}, options.rounds)
            sys.stdout.write(
                f"one model, {wire}, this checkout / the other: {Ratio.of(found['here'], found['there'])}; "
                f"texts/s {_list(found['here'])} and {_list(found['there'])}\n"
            )


def _drive_rest(texts: list[str], callers: int, seconds: float, url: str, _: int) -> float:
    load = asyncio.run(_load(_path(url, "model"), texts, callers, seconds))
    wait_until_idle(serving(url))
    return load.texts_a_second


def _drive_grpc(texts: list[str], seconds: float, url: str, port: int) -> float:
    load = asyncio.run(drive_grpc(port, texts, _GRPC_CALLERS, seconds))
    wait_until_idle(serving(url))
    return load.texts_a_second


def _list(figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:.0f}" for figure in figures)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
