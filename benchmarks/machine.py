"""The machine that figures are of: its CPU, what that can do, and how fast it multiplies matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks.pairs import take_turns
from runners.modeling.loading import BATCH_TOKENS_ON_CPU

# Those that decide which kernels a model runs on.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "sve", "bf16", "i8mm")
# The linear layers of BERT-base, and how many of each a layer of the model has.
_SHAPES = {(768, 768): 4, (768, 3072): 1, (3072, 768): 1}
_ROUNDS = 10


def machine() -> dict[str, Any]:
    """The facts that each table begins with, for JSON."""
    name, instruction_sets = read_cpu(Path("/proc/cpuinfo").read_text())
    return {
        "date": date.today().isoformat(),
        "machine": f"{len(os.sched_getaffinity(0))} cores, {name}",
        "instruction_sets": instruction_sets,
        "matrix_gflops": {library: speed / 1e9 for library, speed in matrix_speeds().items()},
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }


def describe(facts: dict[str, Any]) -> str:
    """The line above a table."""
    speeds = ", ".join(f"{library} {speed:.0f}" for library, speed in facts["matrix_gflops"].items())
    return (
        f"{facts['date']}, {facts['machine']}, {' '.join(facts['instruction_sets']) or 'no vector instructions'}; "
        f"float32 matrix products of {BATCH_TOKENS_ON_CPU} rows: {speeds} GFLOP/s; {facts['versions']}"
    )


def read_cpu(cpuinfo: str) -> tuple[str, list[str]]:
    """The kind of CPU, and its instruction sets that matter, by the text of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields['model']})"
    flags = (fields.get("flags") or fields.get("Features", "")).split()
    return name, [one for one in _INSTRUCTION_SETS if one in flags]


def matrix_speeds(dtype: str = "float32") -> dict[str, float]:
    """Floating-point operations a second of BERT-base's linear layers at a full batch, by library."""
    flops = sum(number * matrix_flops(*shape) for shape, number in _SHAPES.items())
    seconds = dict.fromkeys(("MKL", "oneDNN"), 0.0)
    for shape, number in _SHAPES.items():
        for library, measured in time_products(*shape, dtype=dtype).items():
            seconds[library] += number * measured
    return {library: flops / spent for library, spent in seconds.items()}


def matrix_flops(inputs: int, outputs: int) -> int:
    """Of a product of a full batch."""
    return 2 * BATCH_TOKENS_ON_CPU * inputs * outputs


@torch.inference_mode()
def time_products(inputs: int, outputs: int, rounds: int = _ROUNDS, dtype: str = "float32") -> dict[str, float]:
    """Seconds of a linear layer of a full batch by MKL, which `F.linear` calls, and by oneDNN with a packed weight.

    In other types than float32 `F.linear` calls oneDNN too.
    """
    layer = nn.Linear(inputs, outputs, dtype=getattr(torch, dtype))
    rows = torch.randn(BATCH_TOKENS_ON_CPU, inputs, dtype=layer.weight.dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), BATCH_TOKENS_ON_CPU)
    ways: dict[str, Callable[[], Tensor]] = {
        "MKL": lambda: layer(rows),
        "oneDNN": lambda: torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], ""),
    }
    for run in ways.values():
        run()
    measured = take_turns({way: _timer(run) for way, run in ways.items()}, rounds)
    return {way: median(seconds) for way, seconds in measured.items()}


def _timer(run: Callable[[], Tensor]) -> Callable[[], float]:
    def measure() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return measure


if __name__ == "__main__":
    import sys

    sys.stdout.write(describe(machine()) + "\n")
