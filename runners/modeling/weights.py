"""Copies memory-mapped weights: if the file changes, mapped weights change too, or reading them kills the process."""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

from runners.core.device_thread import give_way

_MAPS = Path("/proc/self/maps")


def copy_mapped_weights(model: nn.Module) -> int:
    """Copy the parameters and buffers that are in a memory-mapped file; tied weights stay tied.

    Returns:
        How many bytes were copied.
    """
    ranges = _find_mapped_files()
    starts = [start for start, _ in ranges]
    copies: dict[tuple[object, ...], Tensor] = {}
    copied = 0
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.device.type != "cpu" or not tensor.numel():
            continue
        place = bisect_right(starts, tensor.data_ptr()) - 1
        if place < 0 or tensor.data_ptr() >= ranges[place][1]:
            continue
        key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if key not in copies:
            give_way()
            copies[key] = tensor.detach().clone()
            copied += copies[key].nbytes
        tensor.data = copies[key]
    return copied


def _find_mapped_files() -> list[tuple[int, int]]:
    """Start and end address of each memory-mapped file, in order."""
    ranges = []
    for line in _MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path:
            start, end = addresses.split("-")
            ranges.append((int(start, 16), int(end, 16)))
    return sorted(ranges)
