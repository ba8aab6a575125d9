"""Arrays on their way to a device and back; a GPU's copies and events are emulated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from runners.encoder.transfers import DeviceArrays, PendingArray, upload

CPU = torch.device("cpu")
# Of several dtypes, of sizes that are no multiples of 16 bytes, and empty.
ARRAYS: dict[str, Any] = {
    "input_ids": np.arange(7, dtype=np.int64)[None],
    "cu_seqlens": np.array([0, 3, 7], dtype=np.int32),
    "read_rows": np.array([], dtype=np.int64),
    "scores": np.array([[0.5, -2.0, 3.25]], dtype=np.float32),
}


def check(tensors: dict[str, torch.Tensor], arrays: dict[str, Any]) -> None:
    assert [*tensors] == [*arrays]
    for name, array in arrays.items():
        found = tensors[name].numpy()
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)


def test_arrays_are_side_by_side_and_aligned() -> None:
    tensors = DeviceArrays(ARRAYS, CPU).tensors
    check(tensors, ARRAYS)
    filled = [tensor for tensor in tensors.values() if tensor.numel()]
    assert len({tensor.untyped_storage().data_ptr() for tensor in filled}) == 1
    assert [tensor.storage_offset() * tensor.element_size() for tensor in filled] == [0, 64, 80]


def test_what_is_filled_again_is_at_the_same_addresses() -> None:
    """A CUDA graph reads them there."""
    arrays = DeviceArrays(ARRAYS, CPU)
    tensors = dict(arrays.tensors)
    others = {name: array + 1 for name, array in ARRAYS.items()}
    arrays.fill(others)
    check(tensors, others)


def test_a_gpu_gets_all_arrays_in_one_pinned_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[int, bool]] = []
    empty, copy = torch.empty, torch.Tensor.copy_
    pinned: list[bool] = []

    def allocate(*size: int, device: torch.device | None = None, pin_memory: bool = False, **options: Any) -> Any:
        if device is None:
            pinned.append(pin_memory)
        return empty(*size, **options)

    def record(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        copies.append((len(source), non_blocking))
        return copy(target, source)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.Tensor, "copy_", record)
    check(upload(ARRAYS, torch.device("cuda", 1)), ARRAYS)
    assert pinned == [True]
    assert copies == [(96, True)]


def test_tensors_on_a_cpu_share_the_memory_of_the_arrays() -> None:
    for name, tensor in upload(ARRAYS, CPU).items():
        assert tensor.data_ptr() == ARRAYS[name].ctypes.data or not tensor.numel()


def test_an_array_of_a_cpu_is_there_at_once() -> None:
    array = PendingArray(torch.arange(3))
    assert not array.is_pending
    assert array.wait().tolist() == [0, 1, 2]


class Event:
    """An event of a GPU; the copy before it arrives when it is waited for."""

    def __init__(self, blocking: bool) -> None:
        assert blocking, "a thread that spins takes a core from the tokenizers"
        self.recorded: list[object] = []

    def record(self, stream: object) -> None:
        self.recorded.append(stream)

    def synchronize(self) -> None:
        assert self.recorded == ["stream of cuda:1"]
        self.recorded.clear()


class OnGpu:
    """A tensor of a GPU."""

    device, shape, dtype = torch.device("cuda", 1), torch.Size([2]), torch.float32


def test_an_array_of_a_gpu_is_pending_until_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[tuple[object, bool]] = []
    empty = torch.empty

    def copy(target: torch.Tensor, source: Any, non_blocking: bool) -> None:
        copies.append((source, non_blocking))
        target.fill_(5)

    def allocate(shape: torch.Size, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory, "a copy to pageable memory waits"
        return empty(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.Tensor, "copy_", copy)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    tensor: Any = OnGpu()
    array = PendingArray(tensor)
    assert (copies, array.is_pending) == ([(tensor, True)], True)
    assert array.wait().tolist() == [5, 5]
    assert not array.is_pending
    # No second wait.
    assert array.wait().tolist() == [5, 5]
