"""The precision of float32 matrix products: set for a GPU that has TF32, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runners.modeling.matmul_precision import exact_matmuls, is_reduced, set_matmul_precision
from runners.modeling.score_difference import find_tolerance
from tests.conftest import ModelFolder
from tests.encoders import load

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.parametrize(
    ("precision", "device", "capability", "dtype", "is_set", "warning"),
    [
        ("highest", GPU, (9, 0), torch.float32, "highest", ""),
        ("high", GPU, (8, 0), torch.float32, "high", ""),
        ("medium", GPU, (9, 0), torch.float32, "medium", ""),
        ("high", GPU, (7, 5), torch.float32, "high", "matmul_precision has no effect on this GPU, which has no TF32"),
        ("high", GPU, (9, 0), torch.float16, "high", "matmul_precision has no effect in float16"),
        # Set on a CPU, oneDNN would compute in bfloat16.
        ("medium", CPU, None, torch.float32, "highest", "matmul_precision has no effect on a CPU"),
        ("highest", CPU, None, torch.float32, "highest", ""),
    ],
)
def test_where_it_is_set(
    precision: str,
    device: torch.device,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    is_set: str,
    warning: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    set_matmul_precision(precision, device, dtype)
    assert torch.get_float32_matmul_precision() == is_set
    assert [record.message for record in caplog.records] == [warning] * bool(warning)


@pytest.mark.parametrize(("precision", "rounds"), [("highest", False), ("high", True)])
def test_convolutions_are_as_precise_as_matrix_products(
    precision: str, rounds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.backends.cudnn.allow_tf32 = not rounds
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    set_matmul_precision(precision, GPU, torch.float32)
    assert torch.backends.cudnn.allow_tf32 is rounds


def test_products_are_exact_within_the_block() -> None:
    torch.set_float32_matmul_precision("high")
    with exact_matmuls():
        assert not is_reduced()
    assert is_reduced()


def test_the_tolerance_is_that_of_float16_with_tf32() -> None:
    """Both have 10 bits of mantissa."""
    assert find_tolerance(torch.float32) < find_tolerance(torch.float16)
    torch.set_float32_matmul_precision("high")
    assert find_tolerance(torch.float32) == find_tolerance(torch.float16) < find_tolerance(torch.bfloat16)
    assert find_tolerance(torch.float64) == 0


def round_to_tf32(tensor: torch.Tensor) -> torch.Tensor:
    """Round to nearest with 10 bits of mantissa, as cuBLAS does with the factors of a product."""
    bits = tensor.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_model_is_packed_with_tf32(
    precision: str, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The factors of products are rounded as a GPU does, while the precision says so; the stock model's too."""
    caplog.set_level("INFO")
    linear = torch.nn.functional.linear
    exact = []

    def round_factors(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        exact.append(not is_reduced())
        return linear(rows, weight, bias) if exact[-1] else linear(round_to_tf32(rows), round_to_tf32(weight), bias)

    monkeypatch.setattr(torch.nn.functional, "linear", round_factors)
    torch.set_float32_matmul_precision(precision)
    runner = load(model_dir=str(model_folder("bert", "sequence_classification")))
    runner.close()
    assert "texts are run in packed batches" in caplog.text
    assert {*exact} == ({True} if precision == "highest" else {True, False}), "it is also compared in float32"
