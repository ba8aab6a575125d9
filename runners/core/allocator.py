"""How PyTorch's allocator keeps the memory of a GPU. Importing this module imports no torch."""

from __future__ import annotations

import os

_VARIABLE = "PYTORCH_ALLOC_CONF"
# Older names, which PyTorch still reads, and which win over the new one.
_NAMES = (_VARIABLE, "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_VALUE = "expandable_segments:True"
# What this module itself has set; an operator may have set the same.
_set_here: dict[str, str] = {}


def prepare_allocator() -> None:
    """Let segments of memory grow, unless the operator has configured the allocator; call it before importing torch.

    Batches of all sizes leave holes in segments of a fixed size, and memory runs out although much of it is free.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#optimizing-memory-usage-with-pytorch-alloc-conf
    """
    if {*_NAMES}.isdisjoint(os.environ):
        os.environ[_VARIABLE] = _set_here[_VARIABLE] = _VALUE


def inherit_default_allocator() -> None:
    """Let the processes that this one starts have PyTorch's default: vLLM chooses for its own.

    Growing segments move, which its KV connectors do not survive; it looks for the older name only
    (vllm/config/vllm.py, "expandable_segments").
    """
    for name in _set_here:
        os.environ.pop(name, None)
    _set_here.clear()
