"""This server over HTTP, with several workers and beside other servers, where they are installed."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.closed_loop import Load
from benchmarks.gpu.models import MINILM
from benchmarks.gpu.parts import Setting
from benchmarks.gpu.texts import train_tokenizer, write_texts
from benchmarks.pairs import Ratio, take_turns

# What this server needs, beside torch and transformers, and what loads it.
_NEEDED = ("bentoml", "aiohttp", "orjson", "grpc")
_LOADS = ((1, 1), (32, 1), (256, 1), (16, 64))


@dataclass(frozen=True)
class _Side:
    """A server, or why it is not measured.

    Attributes:
        words: its command; `{port}` is its port.
        ready: its path of readiness.
    """

    words: list[str]
    ready: str
    missing: str = ""


def measure_servers(setting: Setting) -> None:
    """Embeddings over HTTP: 1, 2 and 4 workers, and other servers beside this one."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        for name in ("this server", *_list_others(Path(), setting.device)):
            setting.figures.skip(f"embeddings over HTTP, {name}", f"{missing[0]} is not installed")
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tokenizer = train_tokenizer()
        model = setting.scale(MINILM).make(torch.device("cpu"), torch.float32)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _measure_all(setting, folder, write_texts(tokenizer, 1024))


def _measure_all(setting: Setting, folder: Path, texts: list[str]) -> None:
    # They need packages of the server.
    from benchmarks.load import bodies, drive
    from benchmarks.run import serve

    loads = _LOADS[:2] if setting.is_quick else _LOADS
    dtype = "float16" if setting.device.type == "cuda" else "float32"
    workers = (1,) if setting.is_quick else (1, 2, 4)
    gpus = torch.cuda.device_count() if setting.device.type == "cuda" else 0
    sides = {_name_workers(count): _this_server(folder, dtype, count, gpus) for count in workers}
    sides |= _list_others(folder, setting.device)
    with contextlib.ExitStack() as running:
        urls: dict[str, str] = {}
        for name, side in sides.items():
            if side.missing:
                setting.figures.skip(f"embeddings over HTTP, {name}", side.missing)
            elif not setting.is_late(f"embeddings over HTTP, {name}"):
                try:
                    urls[name] = running.enter_context(serve(side.words, side.ready))
                except SystemExit as error:
                    setting.figures.skip(f"embeddings over HTTP, {name}", str(error))
        rounds = 1 if setting.is_quick else 2
        for position, (callers, texts_a_request) in enumerate(loads):
            details = {"callers": callers, "texts_a_request": texts_a_request, "model": "MiniLM", "precision": dtype}
            seconds = setting.seconds(rounds * max(1, len(urls)) * (len(loads) - position))
            requests = bodies("openai", texts, texts_a_request)

            def measure(url: str, many: int = callers, each: int = texts_a_request, long: float = seconds,
                        sent: list[bytes] = requests) -> Load:  # fmt: skip
                return asyncio.run(drive(f"{url}/v1/embeddings", sent, many, each, long))

            measured = take_turns({name: partial(measure, url) for name, url in urls.items()}, rounds)
            _show(setting, measured, details)


def _show(setting: Setting, measured: Mapping[str, Sequence[Load]], details: Mapping[str, Any]) -> None:
    """The speeds of all sides under one load, and the ratios of this server with one worker to the others."""
    own = [load.texts_a_second for load in measured.get(_name_workers(1), ())]
    for name, loads in measured.items():
        speeds = [load.texts_a_second for load in loads]
        setting.figures.show(
            f"embeddings over HTTP, {name}", median(speeds), "texts/s", errors=sum(load.errors for load in loads),
            p50_ms=round(median(load.p50 for load in loads), 2), **details,
        )  # fmt: skip
        if own and name != _name_workers(1):
            ratio = Ratio.of(own, speeds)
            pairs = [round(pair, 3) for pair in ratio.pairs]
            setting.figures.show(f"{_name_workers(1)} to {name}", ratio.median, "ratio", pairs=pairs, **details)


def _name_workers(count: int) -> str:
    return f"this server, {count} worker{'s' * (count > 1)}"


def _this_server(folder: Path, dtype: str, workers: int, gpus: int) -> _Side:
    """
    Args:
        gpus: those of this machine that it may use; each worker runs on one.
    """
    from benchmarks.run import serve_words

    words = [*serve_words(folder, dtype), "--arg=task=text_embedding", f"--arg=workers={workers}"]
    # A server that cannot use the GPU is not to be compared.
    words.append(f"--arg=gpu={min(workers, gpus)}")
    return _Side(words, "/v2/health/ready")


def _list_others(folder: Path, device: torch.device) -> dict[str, _Side]:
    """Other servers of embeddings."""
    absent = [name for name in ("fastapi", "uvicorn", "sentence_transformers") if find_spec(name) is None]
    infinity, vllm = shutil.which("infinity_emb"), shutil.which("vllm")
    port = "--port={port}"
    return {
        "FastAPI + sentence-transformers": _Side(
            [sys.executable, "-m", "benchmarks.reference_server", str(folder), "text_embedding", "{port}",
             f"--device={device.type}"],
            "/v2/health/ready", f"{absent[0]} is not installed" if absent else "",
        ),
        "Infinity": _Side(
            [infinity or "", "v2", f"--model-id={folder}", port, "--engine=torch", f"--device={device.type}",
             "--host=127.0.0.1", "--url-prefix=/v1"],
            "/v1/models", "" if infinity else "infinity_emb is not installed",
        ),
        "vLLM": _Side(
            [vllm or "", "serve", str(folder), "--runner=pooling", port, "--gpu-memory-utilization=0.3"],
            "/v1/models", "" if vllm and device.type == "cuda" else "vllm is not installed, or there is no GPU",
        ),
    }  # fmt: skip
