"""The device of the tests, and what they report.

These tests run in a bare source tree too, so this file and their modules import torch, transformers, pytest and the
engine alone. What needs other packages is imported by the test that needs it, and skipped by name without them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.emulated_gpu import emulate_gpu

Record = Callable[..., None]

# `cpu` rehearses the tests that need no card.
DEVICE_VARIABLE = "GPU_TESTS_DEVICE"
NO_GPU = "no GPU that torch can use"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests here."""
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)


def is_usable() -> bool:
    """Whether torch finds a GPU and can compute on it."""
    if not torch.cuda.is_available():
        return False
    try:
        return float(torch.ones(2, device="cuda").sum()) == 2
    except RuntimeError:
        return False


@pytest.fixture(scope="session")
def card() -> torch.device:
    """The GPU, for what a CPU cannot show."""
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        pytest.skip(f"{NO_GPU}: this is a rehearsal on the CPU")
    if not is_usable():
        pytest.skip(NO_GPU)
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    """The GPU, or the CPU in a rehearsal."""
    if os.environ.get(DEVICE_VARIABLE) == "cpu":
        # The models are so small that threads would only wait for each other.
        torch.set_num_threads(1)
        return torch.device("cpu")
    found: torch.device = request.getfixturevalue("card")
    return found


@pytest.fixture
def kernels(device: torch.device) -> Iterator[None]:
    """The attention kernels of a GPU, which a rehearsal emulates."""
    with emulate_gpu() if device.type == "cpu" else nullcontext():
        yield


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config, device: torch.device) -> Record:
    """Prints a figure as one JSON line: `record("difference", 1e-6, "relative", family="bert")`.

    It is printed at once, so that a run that is stopped has told what it has found so far.
    """
    capture: Any = pytestconfig.pluginmanager.getplugin("capturemanager")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def show(figure: str, value: Any, unit: str, **details: Any) -> None:
        line = json.dumps({"figure": figure, "value": value, "unit": unit, **details, "card": name})
        with capture.global_and_fixture_disabled():
            print(f"\n{line}", flush=True)  # noqa: T201

    return show


@pytest.fixture(autouse=True)
def free_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Give each test the memory of the card."""
    yield
    if is_usable():
        torch.cuda.empty_cache()
