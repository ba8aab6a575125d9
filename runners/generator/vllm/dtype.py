"""The data type in which vLLM computes on a CPU, by its instruction sets.

A trial would cost a start of vLLM, 50 s, so that this is a table of what has been measured
(docs/explanation/generation.md).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.machine import available_memory

logger = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# Flags of x86 CPUs that multiply bfloat16; others emulate it.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
# Flags of x86 CPUs for which float32 has been measured.
_MEASURED = "avx2"


def choose_dtype(arguments: Arguments, cpuinfo: Path = _CPUINFO, memory: int | None = None) -> str | None:
    """The data type for vLLM on this CPU; that of the arguments, except for bfloat16 weights that it would emulate.

    Args:
        memory: the bytes that can be allocated; None to ask the machine.
    """
    folder = Path(arguments.model)
    if arguments.dtype not in (None, "auto") or not _is_bfloat16(folder):
        return arguments.dtype
    flags = _read_flags(cpuinfo)
    if _MEASURED not in flags or not flags.isdisjoint(_BFLOAT16):
        return arguments.dtype
    needed = 2 * sum(_sizes(folder))
    free = available_memory() if memory is None else memory
    # The other half is for the cache.
    if needed > free // 2:
        logger.info("vLLM computes in bfloat16, which this CPU emulates: float32 would take %d MB", needed // 2**20)
        return arguments.dtype
    logger.info("vLLM computes in float32: this CPU has no instructions for the checkpoint's bfloat16 (%s)", _MEASURED)
    return "float32"


def _is_bfloat16(folder: Path) -> bool:
    """Whether the model is a folder with weights in bfloat16; a model on the hub, of unknown size, is not."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        return "bfloat16" in (config.get("dtype"), config.get("torch_dtype")) and any(_sizes(folder))
    except (OSError, ValueError, AttributeError):
        return False


def _sizes(folder: Path) -> Iterable[int]:
    return (path.stat().st_size for path in folder.glob("*.safetensors"))


def _read_flags(cpuinfo: Path) -> frozenset[str]:
    """The instruction sets of an x86 CPU; none of others, whose file has no such line."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
