"""The data type in which vLLM computes on a CPU, by its instruction sets.

A trial would cost a start of vLLM, 50 s, so that this is a table of what has been measured
(docs/explanation/generation.md).
"""

from __future__ import annotations

import json
import logging
from fnmatch import fnmatch
from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.machine import available_memory

logger = logging.getLogger(__name__)

_CPUINFO = Path("/proc/cpuinfo")
# Flags of x86 CPUs that multiply bfloat16; others emulate it.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
# Flags of x86 CPUs for which float32 has been measured.
_MEASURED = "avx2"
_WEIGHTS = "*.safetensors"


def choose_dtype(arguments: Arguments, cpuinfo: Path = _CPUINFO, memory: int | None = None) -> str | None:
    """The data type for vLLM on this CPU; that of the arguments, except for bfloat16 weights that it would emulate.

    Args:
        memory: the bytes that can be allocated; None to ask the machine.
    """
    if arguments.dtype not in (None, "auto"):
        return arguments.dtype
    flags = _read_flags(cpuinfo)
    if _MEASURED not in flags or not flags.isdisjoint(_BFLOAT16):
        return arguments.dtype
    size = _measure_bfloat16(arguments)
    if not size:
        return arguments.dtype
    needed = 2 * size
    free = available_memory() if memory is None else memory
    # The other half is for the cache.
    if needed > free // 2:
        logger.info("vLLM computes in bfloat16, which this CPU emulates: float32 would take %d MB", needed // 2**20)
        return arguments.dtype
    logger.info("vLLM computes in float32: this CPU has no instructions for the checkpoint's bfloat16 (%s)", _MEASURED)
    return "float32"


def _measure_bfloat16(arguments: Arguments) -> int:
    """The bytes of the model's weights if they are in bfloat16; 0 if they are not, or if that cannot be found out."""
    try:
        folder = Path(arguments.model)
        path = folder / "config.json" if folder.is_dir() else _download_config(arguments)
        config = json.loads(path.read_bytes())
        if "bfloat16" not in (config.get("dtype"), config.get("torch_dtype")):
            return 0
        size = sum(file.stat().st_size for file in path.parent.glob(_WEIGHTS))
        return size if size or folder.is_dir() else _ask_for_size(arguments)
    except Exception as error:
        # vLLM says what is wrong with the model.
        logger.debug("the model's data type is not known: %s", type(error).__name__)
        return 0


def _download_config(arguments: Arguments) -> Path:
    """config.json in the hub's cache; weights of an earlier start are in the same folder."""
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(arguments.model, "config.json", revision=arguments.model_revision))


def _ask_for_size(arguments: Arguments) -> int:
    from huggingface_hub import HfApi

    info = HfApi().model_info(arguments.model, revision=arguments.model_revision, files_metadata=True)
    return sum(file.size or 0 for file in info.siblings or () if fnmatch(file.rfilename, _WEIGHTS))


def _read_flags(cpuinfo: Path) -> frozenset[str]:
    """The instruction sets of an x86 CPU; none of others, whose file has no such line."""
    for line in cpuinfo.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()
