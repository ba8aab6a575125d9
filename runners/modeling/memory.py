"""Refuses a model that does not fit into the memory that is free, before the system would end the process."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PretrainedConfig

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.core.machine import available_memory, format_size
from runners.modeling.dtype_selection import read_stored_dtype
from runners.modeling.dtypes import name_dtype
from runners.modeling.loading import resolve_batch_tokens
from runners.modeling.model_files import find_file, load_json

logger = logging.getLogger(__name__)

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# The library's own limit.
_LONGEST_HEADER = 100_000_000
# Numbers that a layer keeps for a token: inputs, queries, keys, values, and their copies; and the feed-forward's.
_HIDDEN_COPIES, _INTERMEDIATE_COPIES = 8, 2


def check_memory(arguments: Arguments, config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
    """Compare what the model will take with what is free. Other models are loaded already, or load later.

    Linear layers are packed into copies, but the weights that they were packed from are in a file that is mapped, whose
    pages the system drops. So the weights count once, in the dtype that is served.

    Args:
        dtype: the dtype that is served.

    Raises:
        ModelLoadError: the model does not fit; the message has all numbers.
    """
    weights = estimate_weights(arguments, config, dtype)
    if weights is None:
        return
    tokens = resolve_batch_tokens(arguments, device)
    needs = {
        f"its weights in {name_dtype(dtype)}": weights,
        f"a batch of {tokens} tokens": tokens * _bytes_per_token(config, dtype),
    }
    if device.type == "cuda":
        compare_memory(arguments.model_name, needs, torch.cuda.mem_get_info(device)[0], "GPU")
    else:
        compare_memory(arguments.model_name, needs, available_memory(), "machine")


def compare_memory(name: str, needs: Mapping[str, int], free: int, place: str, advice: str = "") -> None:
    """
    Args:
        name: the model's name.
        needs: bytes by what they are for.
        advice: a further part of the error's message.

    Raises:
        ModelLoadError: the needs are more than what is free.
    """
    listed = " and ".join(f"{format_size(count)} for {purpose}" for purpose, count in needs.items())
    if sum(needs.values()) > free:
        raise ModelLoadError(
            f"{name} does not fit into memory: it takes {listed}, and {format_size(free)} are free on this "
            f"{place}{advice}"
        )
    logger.debug("%s takes %s; %s are free", name, listed, format_size(free))


def estimate_weights(arguments: Arguments, config: PretrainedConfig, dtype: torch.dtype) -> int | None:
    """The bytes of the weights in a dtype; None if they are in no safetensors file that is found."""
    if (path := find_file(arguments, _WEIGHTS)) is not None:
        return dtype.itemsize * _count_elements(path)
    index = load_json(arguments, _INDEX)
    total = index.get("metadata", {}).get("total_size") if isinstance(index, dict) else None
    if not isinstance(total, int):
        return None
    return total * dtype.itemsize // read_stored_dtype(config).itemsize


def _count_elements(path: Path) -> int:
    """How many numbers the tensors in a file have; the library itself maps all of it, which a large one refuses.

    https://huggingface.co/docs/safetensors/index#format: 8 bytes with the length of a JSON object, and the object.

    Returns:
        0 if the file is damaged; the load says why.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _LONGEST_HEADER:
            return 0
        try:
            header = json.loads(file.read(length))
            elements = sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
            # A number takes a byte at least.
            return elements if elements <= path.stat().st_size else 0
        except (ValueError, AttributeError, TypeError, KeyError):
            return 0


def _bytes_per_token(config: PretrainedConfig, dtype: torch.dtype) -> int:
    text_config = config.get_text_config()
    hidden = getattr(text_config, "hidden_size", None) or 0
    intermediate = getattr(text_config, "intermediate_size", None) or 4 * hidden
    return dtype.itemsize * (_HIDDEN_COPIES * hidden + _INTERMEDIATE_COPIES * intermediate)
