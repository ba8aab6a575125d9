"""The device of each worker, on machines with GPUs that are emulated: what PyTorch says of them is replaced."""

from __future__ import annotations

import warnings

import pytest
import torch

from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from runners.modeling.devices import choose_device

NO_DRIVER = (
    "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
    "http://www.nvidia.com/Download/index.aspx"
)
OLD_DRIVER = "The NVIDIA driver on your system is too old (found version 11040).\nPlease update your GPU driver"


class Machine:
    """A number of GPUs that PyTorch can use.

    Attributes:
        current: the GPUs that were made the current device, in order.
    """

    def __init__(self, gpus: int, reason: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: list[torch.device] = []

        def is_available() -> bool:
            if reason is not None:
                warnings.warn(f"CUDA initialization: {reason}", stacklevel=2)
            return gpus > 0

        def init() -> None:
            if reason is not None:
                raise reason

        monkeypatch.setattr(torch.cuda, "is_available", is_available)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "set_device", self.current.append)


@pytest.mark.parametrize(
    ("gpus", "position", "arguments", "expected"),
    [
        (0, 0, {}, "cpu"),
        (0, 3, {"gpu": 0}, "cpu"),
        (1, 0, {}, "cuda:0"),
        (1, 1, {}, "cuda:0"),
        (2, 0, {}, "cuda:0"),
        (2, 1, {}, "cuda:1"),
        (2, 2, {}, "cuda:0"),
        (4, 3, {"gpu": 4}, "cuda:3"),
        (4, 5, {"gpu_type": "nvidia-l4"}, "cuda:1"),
        (2, 1, {"gpu": 0}, "cpu"),
    ],
)
def test_the_device_of_a_worker(
    gpus: int, position: int, arguments: dict[str, object], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(gpus, None, monkeypatch)
    device = choose_device(Arguments.model_validate(arguments), position)
    assert str(device) == expected
    assert machine.current == ([device] if device.type == "cuda" else [])


@pytest.mark.parametrize(("gpus", "gpu", "is_said"), [(1, 0, True), (0, 0, False), (1, None, False)])
def test_gpus_that_are_not_used_are_said(
    gpus: int, gpu: int | None, is_said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(gpus, None, monkeypatch)
    with caplog.at_level("INFO"):
        choose_device(Arguments(gpu=gpu), 0)
    assert caplog.messages == ["gpu is 0, so the GPUs that PyTorch sees are not used"] * is_said


@pytest.mark.parametrize(
    ("arguments", "gpus", "reason", "message"),
    [
        ({"gpu": 1}, 0, AssertionError("Torch not compiled with CUDA enabled"),
         "gpu is 1, but PyTorch can use none: Torch not compiled with CUDA enabled"),
        ({"gpu": 2}, 0, RuntimeError(NO_DRIVER), f"gpu is 2, but PyTorch can use none: {NO_DRIVER}"),
        ({"gpu_type": "nvidia-l4"}, 0, RuntimeError(OLD_DRIVER),
         "gpu_type is nvidia-l4, but PyTorch can use none: The NVIDIA driver on your system is too old (found version "
         "11040). Please update your GPU driver"),
        ({"gpu": 1}, 0, None, "gpu is 1, but PyTorch can use none: it sees none"),
        ({"gpu": 4}, 2, None, "gpu is 4, but PyTorch sees 2 only"),
    ],
)  # fmt: skip
def test_a_gpu_that_is_asked_for_and_cannot_be_used(
    arguments: dict[str, object], gpus: int, reason: Exception | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(gpus, reason, monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ArgumentsError) as raised:
            choose_device(Arguments.model_validate(arguments), 0)
    assert str(raised.value) == message


def test_a_driver_that_is_too_old_is_no_error_unless_a_gpu_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(0, RuntimeError(OLD_DRIVER), monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_device(Arguments(), 0) == torch.device("cpu")


def test_this_machine_s_pytorch_says_why() -> None:
    """PyTorch's own words, on a machine without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ArgumentsError, match=r"gpu is 1, but PyTorch can use none: \S+ \S+"):
        choose_device(Arguments(gpu=1), 0)
