"""What an error means for a GPU, emulated: the calls of CUDA that a check makes are replaced."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from runners.core.device_thread import DeviceFailedError
from runners.modeling.device_failures import check_device, device_failures, examine_failure, is_out_of_memory

GPU, CPU = torch.device("cuda", 1), torch.device("cpu")
FAULT = "CUDA error: device-side assert triggered"

Fault = Callable[[], Exception]


def accelerator_error(code: int) -> torch.AcceleratorError:
    """As PyTorch raises it (torch/csrc/Exceptions.cpp, `_new_accelerator_error_object`)."""
    error = torch.AcceleratorError(FAULT)
    error.error_code = code  # type: ignore[attr-defined]
    return error


class Gpu:
    """The calls of CUDA, which fail once a fault has happened.

    Attributes:
        calls: what was called, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fault: Exception | None = None
        self.calls: list[str] = []
        ones = torch.ones

        def make(*size: int, device: torch.device) -> torch.Tensor:
            self._call(f"ones on {device}")
            return ones(*size)

        monkeypatch.setattr(torch, "ones", make)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self._call(f"synchronize {device}"))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: self._call("empty_cache"))

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    return Gpu(monkeypatch)


def test_memory_is_no_fault() -> None:
    """Neither class is the other's base, so that each needs its own case."""
    assert not issubclass(torch.OutOfMemoryError, torch.AcceleratorError)
    assert not issubclass(torch.AcceleratorError, torch.OutOfMemoryError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        # Of pinned memory, for example.
        (accelerator_error(2), True),
        (accelerator_error(710), False),
        (torch.AcceleratorError(FAULT), False),
        (RuntimeError("CUDA out of memory"), False),
    ],
)
def test_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("error", "device", "fault", "fails"),
    [
        (torch.AcceleratorError(FAULT), CPU, None, True),
        (torch.AcceleratorError(FAULT), GPU, None, True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"), GPU, torch.AcceleratorError(FAULT), True),
        (ValueError("a shape"), GPU, RuntimeError("CUDA driver error"), True),
        (ValueError("a shape"), GPU, None, False),
        (ValueError("a shape"), CPU, torch.AcceleratorError(FAULT), False),
        (torch.OutOfMemoryError("CUDA out of memory"), GPU, None, False),
        # The check itself finds no memory, which other processes have taken.
        (ValueError("a shape"), GPU, torch.OutOfMemoryError("CUDA out of memory"), False),
        # Work that was on its way when memory ran out has failed.
        (torch.OutOfMemoryError("CUDA out of memory"), GPU, accelerator_error(700), True),
        (accelerator_error(2), GPU, None, False),
    ],
)
def test_an_error_is_examined(
    error: Exception, device: torch.device, fault: Exception | None, fails: bool, gpu: Gpu
) -> None:
    gpu.fault = fault
    if fails:
        with pytest.raises(DeviceFailedError):
            examine_failure(error, device)
    else:
        examine_failure(error, device)
    if not fails and device == GPU:
        assert next(call for call in gpu.calls if call != "empty_cache") == "ones on cuda:1"
        assert ("empty_cache" in gpu.calls) is is_out_of_memory(error)
    if device == CPU:
        assert gpu.calls == []


def test_a_check_waits_for_the_gpu(gpu: Gpu) -> None:
    """An operator is only queued; the fault is known once it has run."""
    check_device(GPU)
    assert gpu.calls == ["ones on cuda:1", "synchronize cuda:1"]


class Activation:
    """Something that a forward pass holds."""


def fail(alive: list[weakref.ref[Activation]], error: Exception) -> None:
    activation = Activation()
    alive.append(weakref.ref(activation))
    raise error


def fail_with_causes(alive: list[weakref.ref[Activation]]) -> None:
    try:
        try:
            fail(alive, torch.OutOfMemoryError("CUDA out of memory"))
        except torch.OutOfMemoryError:
            fail(alive, ValueError("while it was handled"))
    except ValueError as error:
        other = Activation()
        alive.append(weakref.ref(other))
        raise RuntimeError("because of it") from error


def test_what_an_error_holds_is_freed() -> None:
    alive: list[weakref.ref[Activation]] = []
    try:
        fail_with_causes(alive)
    except RuntimeError as error:
        assert [each() is not None for each in alive] == [True] * 3
        examine_failure(error, CPU)
        assert [each() for each in alive] == [None] * 3
    assert len(alive) == 3


def test_a_fault_that_a_load_has_caught_is_found(gpu: Gpu) -> None:
    """Probing tries what may fail, and goes on without it."""
    with pytest.raises(DeviceFailedError, match="device-side assert"), device_failures(GPU):
        gpu.fault = torch.AcceleratorError(FAULT)


@pytest.mark.parametrize("error", [torch.AcceleratorError(FAULT), ValueError("a shape")])
def test_an_error_of_a_load(error: Exception, gpu: Gpu) -> None:
    is_fault = isinstance(error, torch.AcceleratorError)
    expected: Any = DeviceFailedError if is_fault else ValueError
    with pytest.raises(expected), device_failures(GPU):
        raise error
    assert ("empty_cache" in gpu.calls) is not is_fault
