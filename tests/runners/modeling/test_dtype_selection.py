"""The data types that a model is tried in, by the argument, the checkpoint and the GPU."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, Gemma3Config

from runners.modeling.dtype_selection import list_dtypes, read_capability, read_stored_dtype

HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("requested", "checkpoint", "capability", "dtypes"),
    [
        (None, HALF, (9, 0), [SINGLE]),
        ("float32", BRAIN, (8, 0), [SINGLE]),
        ("float", HALF, None, [SINGLE]),
        ("float16", BRAIN, (8, 0), [HALF]),
        ("half", SINGLE, None, [HALF]),
        ("bfloat16", SINGLE, (7, 5), [BRAIN]),
        ("auto", BRAIN, None, [SINGLE]),
        ("auto", HALF, None, [SINGLE]),
        # V100 and T4 have no bfloat16, A100 and later ones have it.
        ("auto", SINGLE, (7, 0), [HALF, SINGLE]),
        ("auto", BRAIN, (7, 5), [HALF, SINGLE]),
        ("auto", SINGLE, (8, 0), [HALF, BRAIN, SINGLE]),
        ("auto", HALF, (8, 9), [HALF, BRAIN, SINGLE]),
        ("auto", BRAIN, (8, 0), [BRAIN, SINGLE]),
        ("auto", BRAIN, (9, 0), [BRAIN, SINGLE]),
        ("auto", BRAIN, (12, 0), [BRAIN, SINGLE]),
    ],
)
def test_dtypes_in_order(
    requested: str | None, checkpoint: torch.dtype, capability: tuple[int, int] | None, dtypes: list[torch.dtype]
) -> None:
    assert [*list_dtypes(requested, checkpoint, capability)] == dtypes


def test_the_capability_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", {torch.device("cuda", 1): (7, 5)}.__getitem__)
    assert read_capability(torch.device("cuda", 1)) == (7, 5)
    assert read_capability(torch.device("cpu")) is None


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        (BertConfig(), SINGLE),
        (BertConfig(dtype="bfloat16"), BRAIN),
        (Gemma3Config(text_config={"dtype": "bfloat16"}), BRAIN),
    ],
)
def test_the_dtype_of_the_files(config: BertConfig | Gemma3Config, dtype: torch.dtype) -> None:
    assert read_stored_dtype(config) == dtype
