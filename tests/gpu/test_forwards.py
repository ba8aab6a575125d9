"""Forward passes on a GPU beside the stock model in float32 on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runners.encoder.packing import PackedForward
from runners.encoder.sequences import TokenizedText
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.gpu.conftest import Record
from tests.gpu.families import DTYPES, FAMILIES, Sizes, make_case
from tests.model_cases import ModelCase, run

CASES = [
    pytest.param(family, task, dtype, id=f"{family}-{task}-{dtype}")
    for family, made in FAMILIES.items() for task in made.tasks for dtype in DTYPES
]  # fmt: skip


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("family", "task", "dtype"), CASES)
def test_any_batch_equals_transformers_and_neighbours_change_no_bit(
    family: str, task: str, dtype: str, device: torch.device, record: Record
) -> None:
    case = make_case(family, task, dtype, device)
    assert isinstance(case.forward, PackedForward), case.reason
    random = np.random.default_rng(1)
    longest = Sizes.of(device).longest
    texts = case.texts([2, 64, 65, longest, 129, 7, 33, 130, 17, 3, 48, 8], seed=1)
    expected = [case.expected(text) for text in texts]
    batches = [[0], [3, 1], [*range(len(texts))], *(random.integers(0, len(texts), 9).tolist() for _ in range(3))]
    found = [(index, scores) for batch in batches for index, scores in _run(case, texts, batch)]
    difference = measure_difference(
        torch.cat([scores for _, scores in found]), torch.cat([expected[index] for index, _ in found])
    )
    record("difference", difference, "relative", family=family, task=task, dtype=dtype)
    assert difference <= TOLERANCES[getattr(torch, dtype)]
    scores = run(case.forward, texts)
    for kept in (0, 1):
        mixed = [text if index % 2 == kept else case.replace(text, index) for index, text in enumerate(texts)]
        assert all(map(torch.equal, run(case.forward, mixed)[kept::2], scores[kept::2]))


def _run(case: ModelCase, texts: list[TokenizedText], batch: list[int]) -> list[tuple[int, torch.Tensor]]:
    return list(zip(batch, run(case.forward, [texts[index] for index in batch]), strict=True))
