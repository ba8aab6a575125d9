"""Refuses a model whose weights and cache do not fit into the memory of a machine without GPUs; vLLM measures GPUs."""

from __future__ import annotations

from argparse import Namespace

from vllm.platforms import current_platform

from runners.core.arguments import Arguments
from runners.core.machine import available_memory
from runners.modeling.dtype_selection import read_stored_dtype
from runners.modeling.loading import load_config
from runners.modeling.memory import compare_memory, estimate_weights

_ADVICE = "; --kv-cache-memory-bytes sets another cache"


def check_memory(arguments: Arguments, parsed: Namespace) -> None:
    """
    Args:
        parsed: the arguments as vLLM's parser returns them.

    Raises:
        ModelLoadError: the model does not fit; the message has all numbers.
    """
    if not current_platform.is_cpu():
        return
    config = load_config(arguments)
    weights = estimate_weights(arguments, config, read_stored_dtype(config))
    if weights is not None:
        needs = {"its weights": weights, "vLLM's cache": parsed.kv_cache_memory_bytes or 0}
        compare_memory(arguments.model_name, needs, available_memory(), "machine", _ADVICE)
