"""Weights in memory of this process: what is mapped from a file changes, or ends the process, when the file does."""

from __future__ import annotations

from bisect import bisect_right
from itertools import chain
from pathlib import Path

from torch import Tensor, nn

_MAPS = Path("/proc/self/maps")


def copy_mapped_weights(model: nn.Module) -> int:
    """Copy parameters and buffers that lie in a mapped file, one after another; tied ones stay tied.

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
            copies[key] = tensor.detach().clone()
            copied += copies[key].nbytes
        tensor.data = copies[key]
    return copied


def _find_mapped_files() -> list[tuple[int, int]]:
    """Where in memory files are mapped: from and to, in order."""
    found = []
    for line in _MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *path = line.split(maxsplit=5)
        if inode != "0" and path:
            start, end = addresses.split("-")
            found.append((int(start, 16), int(end, 16)))
    return sorted(found)
