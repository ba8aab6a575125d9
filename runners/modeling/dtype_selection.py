"""The data types that a model may be served in: the operator's, or with `--dtype=auto` those that are tried."""

from __future__ import annotations

import torch
from transformers import PretrainedConfig

_BY_NAME = {
    None: torch.float32,
    "float32": torch.float32,
    "float": torch.float32,
    "float16": torch.float16,
    "half": torch.float16,
    "bfloat16": torch.bfloat16,
}
# GPUs of this compute capability and above multiply bfloat16 and TF32: Ampere and later.
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#features-and-technical-specifications
AMPERE = (8, 0)


def list_dtypes(
    requested: str | None, checkpoint: torch.dtype, capability: tuple[int, int] | None
) -> tuple[torch.dtype, ...]:
    """The dtypes that a model is tried in, until its weights and scores are finite.

    Args:
        requested: the argument `dtype`.
        checkpoint: the dtype of the weights in the model's files.
        capability: the compute capability of the GPU; None on a CPU.
    """
    if requested != "auto":
        return (_BY_NAME[requested],)
    if capability is None:
        return (torch.float32,)
    if capability < AMPERE:
        return torch.float16, torch.float32
    if checkpoint == torch.bfloat16:
        return torch.bfloat16, torch.float32
    return torch.float16, torch.bfloat16, torch.float32


def read_capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a GPU; None for a CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def read_stored_dtype(config: PretrainedConfig) -> torch.dtype:
    """The dtype of the weights in the model's files; float32 if its config names none."""
    for each in (config, config.get_text_config()):
        if isinstance(each.dtype, torch.dtype):
            return each.dtype
    return torch.float32
