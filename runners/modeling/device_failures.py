"""What an error of a model's work means for the device: whether it can still be used, and what the error holds."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from runners.core.device_thread import DeviceFailedError
from runners.core.errors import brief

# `cudaErrorMemoryAllocation`. An allocation outside of PyTorch's own allocator, such as of pinned memory or of a
# kernel's module, fails with this code, and the device stays usable.
_MEMORY_ALLOCATION = 2


def check_device(device: torch.device) -> None:
    """Run a tiny operator on a GPU and wait for it: CUDA reports a fault of earlier work at any later call.

    Raises:
        DeviceFailedError: the GPU cannot be used by this process any more.
    """
    if device.type == "cuda":
        with _reporting_faults():
            torch.ones(1, device=device).add_(1)
            torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the device, or pinned memory, has run out; the device stays usable."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, torch.AcceleratorError) and getattr(error, "error_code", None) == _MEMORY_ALLOCATION


def examine_failure(error: Exception, device: torch.device) -> None:
    """Free the tensors that an error holds, and find out whether the device can still be used; call it on every error.

    A traceback holds the frames of the failed work, and with them all its activations. If work is repeated while an
    `except` block still has the error, there is memory for neither.

    Args:
        error: of work on the device. Its frames lose their local variables.

    Raises:
        DeviceFailedError: the device cannot be used by this process any more.
    """
    _clear_frames(error)
    if is_out_of_memory(error):
        free_memory(device)
    elif isinstance(error, torch.AcceleratorError):
        raise DeviceFailedError(brief(error)) from error
    # Libraries such as cuBLAS report a fault as an error of their own.
    check_device(device)


@contextmanager
def device_failures(device: torch.device) -> Iterator[None]:
    """Examine the errors of a block, such as a load, and the device after it: the block may have caught errors itself.

    Raises:
        DeviceFailedError: the device cannot be used by this process any more.
    """
    try:
        yield
    except Exception as error:
        examine_failure(error, device)
        # A part of a model may have been there.
        free_memory(device)
        raise
    check_device(device)


def free_memory(device: torch.device) -> None:
    """Return the memory of freed tensors, which PyTorch keeps, to a GPU.

    Raises:
        DeviceFailedError: the GPU cannot be used by this process any more.
    """
    if device.type == "cuda":
        with _reporting_faults():
            torch.cuda.empty_cache()


@contextmanager
def _reporting_faults() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise DeviceFailedError(brief(error)) from error


def _clear_frames(error: BaseException) -> None:
    """Drop the local variables of the frames of an error and of the errors that it came from."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        each = pending.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            traceback.clear_frames(each.__traceback__)
            pending += [each.__cause__, each.__context__]
