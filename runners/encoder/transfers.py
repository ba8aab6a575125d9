"""Copies between the CPU and a model's device, for which no thread waits.

A copy from pageable memory synchronizes with the GPU, and each copy costs a start. So the small arrays of a batch are
written side by side into pinned memory and copied at once. PyTorch's allocator of pinned memory keeps its blocks, and
gives a block out again only after the copies that read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Kernels read 16 bytes at a time.
_ALIGNMENT = 16

Arrays = Mapping[str, NDArray[Any]]


class DeviceArrays:
    """Arrays side by side in the memory of a device, which `fill` overwrites in one copy.

    Attributes:
        tensors: a view for each array, of its shape and dtype.
    """

    def __init__(self, arrays: Arrays, device: torch.device) -> None:
        """
        Args:
            arrays: what the memory is filled with.
        """
        self._starts, end = dict[str, int](), 0
        for name, array in arrays.items():
            self._starts[name] = end
            end += math.ceil(array.nbytes / _ALIGNMENT) * _ALIGNMENT
        self._is_pinned = device.type == "cuda"
        self._memory = torch.empty(end, dtype=torch.uint8, device=device)
        self.tensors = {name: self._view(self._memory, name, array) for name, array in arrays.items()}
        self.fill(arrays)

    def fill(self, arrays: Arrays) -> None:
        """Copy other arrays of the same names, shapes and dtypes, in the order of the device's current stream."""
        staged = torch.empty(len(self._memory), dtype=torch.uint8, pin_memory=self._is_pinned)
        for name, array in arrays.items():
            self._view(staged, name, array).numpy()[...] = array
        self._memory.copy_(staged, non_blocking=True)

    def _view(self, memory: Tensor, name: str, array: NDArray[Any]) -> Tensor:
        start = self._starts[name]
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return memory[start : start + array.nbytes].view(dtype).view(array.shape)


def upload(arrays: Arrays, device: torch.device) -> dict[str, Tensor]:
    """The arrays as tensors on a device; on the CPU they share the memory of the arrays."""
    if device.type == "cpu":
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
    return DeviceArrays(arrays, device).tensors


class PendingArray:
    """A tensor that is on its way from its device to the CPU."""

    def __init__(self, tensor: Tensor) -> None:
        """
        Args:
            tensor: on any device, of a dtype that numpy has; the copy starts when the device has computed it.
        """
        self._event: torch.cuda.Event | None = None
        self._tensor = tensor
        if tensor.device.type == "cuda":
            self._tensor = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._tensor.copy_(tensor, non_blocking=True)
            # The thread that waits sleeps, for the tokenizers need the cores.
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    @property
    def is_pending(self) -> bool:
        """Whether the device may still compute it. It does not wait, and raises no error of the device."""
        return self._event is not None

    def wait(self) -> NDArray[Any]:
        """The array, once it has arrived.

        Raises:
            torch.AcceleratorError: the device has failed.
        """
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        array: NDArray[Any] = self._tensor.numpy()
        return array
