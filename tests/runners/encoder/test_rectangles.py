"""The rectangles of a batch's texts: their sides, their memory, and the way back to the rows of the batch."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch

from runners.encoder import rectangles
from runners.encoder.rectangles import Rectangles, find_side

CPU = torch.device("cpu")
LENGTHS = [1, 17, 130, 16, 64, 5, 33, 128, 15]


@pytest.mark.parametrize(
    ("tokens", "side"), [(1, 16), (16, 16), (17, 32), (32, 32), (33, 64), (512, 512), (513, 1024), (8192, 8192)]
)
def test_the_side_is_a_power_of_two(tokens: int, side: int) -> None:
    assert find_side(tokens) == side


@pytest.mark.parametrize(
    ("most_scores", "texts"),
    [
        # By side, of 16, 32, 64, 128 and 256 tokens.
        (2**22, [4, 1, 2, 1, 1]),
        # Two texts of 16 tokens have 512 scores; a larger text is alone.
        (512, [2, 2, 1, 1, 1, 1, 1]),
        (1, [1] * 9),
    ],
)
def test_each_row_is_found_again(most_scores: int, texts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectangles, "_MOST_SCORES", most_scores)
    bounds = [0, *accumulate(LENGTHS)]
    made = Rectangles(bounds, bounds[-1] + 7, CPU)
    assert [len(each.rows) for each in made.parts] == texts
    rows = torch.cat([each.rows.flatten() for each in made.parts])
    assert rows[made.order[: bounds[-1]]].tolist() == list(range(bounds[-1]))
    assert made.order[bounds[-1] :].tolist() == [0] * 7
    is_token = torch.cat([each.is_token().flatten() for each in made.parts])
    assert rows[is_token].sort().values.tolist() == list(range(bounds[-1])), "each row has one slot"
    assert sorted(length for each in made.parts for length in each.lengths.tolist()) == sorted(LENGTHS)
