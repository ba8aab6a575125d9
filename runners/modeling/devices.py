"""The device of a process's models: the CPU, or one of the GPUs that PyTorch sees."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from runners.core.errors import ArgumentsError, one_line
from runners.core.garbage import collect_unloaded

if TYPE_CHECKING:
    from runners.core.arguments import Arguments

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")


def choose_device(arguments: Arguments, position: int) -> torch.device:
    """The device that a model runs on. A GPU becomes the current device of this thread.

    Args:
        position: which of the GPUs that PyTorch sees, counted from 0; beyond the last one it begins again.

    Raises:
        ArgumentsError: PyTorch cannot use the GPUs that the arguments ask for.
    """
    with warnings.catch_warnings():
        # PyTorch warns of a driver that it cannot use, in several lines.
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if arguments.gpu == 0:
        if count:
            logger.info("gpu is 0, so the GPUs that PyTorch sees are not used")
        return CPU
    if count < (arguments.gpu or bool(arguments.gpu_type)):
        asked = f"gpu is {arguments.gpu}" if arguments.gpu else f"gpu_type is {arguments.gpu_type}"
        reason = f"PyTorch sees {count} only" if count else f"PyTorch can use none: {_find_reason()}"
        raise ArgumentsError(f"{asked}, but {reason}")
    if not count:
        return CPU
    device = torch.device("cuda", position % count)
    torch.cuda.set_device(device)
    return device


def free_unloaded(is_freed: Callable[[], bool] = lambda: False) -> None:
    """Free the memory of a model that was unloaded, also that which PyTorch keeps on GPUs for the next tensors.

    A GPU that has failed is found by the next batch or load.

    Args:
        is_freed: see `collect_unloaded`.
    """
    collect_unloaded(is_freed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()


def _find_reason() -> str:
    """Why PyTorch cannot use a GPU, in its own words."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as error:
        return one_line(error)
    return "it sees none"
