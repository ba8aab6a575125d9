"""Padded batches, batches of equal length and texts one by one, against `transformers`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from runners.core.task import Task
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import GroupedForward, PaddedForward, group_above, group_by_length, group_singly, pad
from runners.encoder.sequences import TokenizedText
from tests.architectures.models import save_model
from tests.architectures.registry import Pair
from tests.conftest import ModelFolder
from tests.forwards import ForwardCase, run

TOLERANCE = 2e-5


def text(*ids: int) -> TokenizedText:
    return TokenizedText(np.array(ids), np.ones(len(ids), np.int64), None, False)


class UnusedForward(PaddedForward):
    """A padded forward pass of no model."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("group", "padding"),
    [(None, 3), (group_by_length, 0), (group_singly, 0), (lambda texts: group_above(2, texts), 1)],
)
def test_padding_is_counted(group: Any, padding: int) -> None:
    """Of all texts together, of groups of equal length, of single texts, and of short texts together."""
    texts = [text(1, 2, 3), text(1), text(1, 2), text(1, 2, 3)]
    forward = UnusedForward()
    counted = forward if group is None else GroupedForward(forward, BatchMode.EQUAL_LENGTH, group)
    assert counted.count_padding(texts) == padding


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[7, 8, 9], [5, 1, 1]], [[1, 1, 1], [1, 0, 0]]),
        ("left", [[7, 8, 9], [1, 1, 5]], [[1, 1, 1], [0, 0, 1]]),
    ],
)
def test_padding_goes_to_a_side(side: str, ids: list[list[int]], mask: list[list[int]]) -> None:
    arrays = pad([text(7, 8, 9), text(5)], 1, side)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": ids, "attention_mask": mask, "token_type_ids": mask
    }  # fmt: skip


def test_texts_are_grouped_by_length() -> None:
    texts = [text(1, 2), text(3), text(4, 5), text(6), text(7, 8, 9)]
    assert group_by_length(texts) == [[0, 2], [1, 3], [4]]
    assert group_singly(texts) == [[0], [1], [2], [3], [4]]
    assert group_above(1, texts) == [[1, 3], [0, 2], [4]]
    assert group_above(2, texts) == [[0, 1, 2, 3], [4]]
    assert group_above(0, texts[4:]) == [[0]]


@pytest.mark.parametrize(
    ("mode", "group"),
    [(BatchMode.EQUAL_LENGTH, group_by_length), (BatchMode.ONE_BY_ONE, group_singly)],
    ids=["equal length", "one by one"],
)
@pytest.mark.parametrize("task", [Task.FILL_MASK, Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
@pytest.mark.parametrize("model_type", ["fnet", "nystromformer"])
def test_groups_equal_each_text_alone_in_any_batch(
    model_type: str, task: Task, mode: BatchMode, group: Any, tmp_path: Path
) -> None:
    """Padding changes what these models answer."""
    save_model(Pair(model_type, task), tmp_path)
    case = ForwardCase(tmp_path, task)
    assert case.forward.mode is BatchMode.EQUAL_LENGTH, case.reason
    forward = GroupedForward(PaddedForward(case.inputs), mode, group)
    for seed, lengths in enumerate([(5, 9, 5, 30, 9, 5), (12,), (3, 4)]):
        texts = case.texts(lengths, seed)
        for given, found in zip(texts, run(forward, texts), strict=True):
            torch.testing.assert_close(found, case.expected(given), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("task", "side"),
    [
        ("fill_mask", "left"),
        ("fill_mask", "right"),
        ("token_classification", "left"),
        ("token_classification", "right"),
        # Its pooler reads the first column.
        ("sequence_classification", "right"),
    ],
)
def test_rows_of_padded_texts_are_theirs_on_either_side(task: str, side: str, model_folder: ModelFolder) -> None:
    """DeBERTa knows only how far tokens are from each other, so that the side says nothing but for the first token."""
    case = ForwardCase(model_folder("deberta-v2", task), task)
    # Packed batches replace its attention.
    case.forward.detach()
    texts = case.texts([9, 30, 4], 0)
    for given, found in zip(texts, run(PaddedForward(case.inputs, side), texts), strict=True):
        torch.testing.assert_close(found, case.expected(given), atol=TOLERANCE, rtol=TOLERANCE)


SCALED_POSITIONS: dict[str, dict[str, Any]] = {
    # Other factors above 24 tokens, of 96.
    "longrope": {
        "original_max_position_embeddings": 24,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0, 5.0, 7.0, 9.0],
    },
    # Grows above 24 tokens.
    "dynamic": {"factor": 4.0},
}


@pytest.mark.parametrize("kind", SCALED_POSITIONS)
@pytest.mark.parametrize("task", [Task.SEQUENCE_CLASSIFICATION, Task.TOKEN_CLASSIFICATION])
def test_positions_do_not_depend_on_the_longest_text(task: Task, kind: str, tmp_path: Path) -> None:
    """Nor on the texts of batches before, which dynamic scaling keeps in mind."""
    model_type = "phi3" if kind == "longrope" else "llama"
    scaled = {"rope_type": kind, "rope_theta": 10000.0, **SCALED_POSITIONS[kind]}
    positions = 96 if kind == "longrope" else 24
    save_model(
        Pair(model_type, task), tmp_path, rope_parameters=scaled, max_position_embeddings=positions,
        original_max_position_embeddings=24,
    )  # fmt: skip
    case = ForwardCase(tmp_path, task)
    assert "texts of more than 24 tokens run only beside others of their length" in case.reason
    texts = case.texts([9, 60, 30, 24, 60, 25], 0)
    expected = [ForwardCase.expected(fresh(case), given) for given in texts]
    for order in ([0, 1, 2, 3, 4, 5], [1, 0], [2], [5, 3, 0], [0, 3]):
        for index, found in zip(order, run(case.forward, [texts[index] for index in order]), strict=True):
            torch.testing.assert_close(found, expected[index], atol=TOLERANCE, rtol=TOLERANCE)


def fresh(case: ForwardCase) -> ForwardCase:
    """The case with a reference that has not read a text yet."""
    copied = copy.copy(case)
    copied.reference = copy.deepcopy(case.reference)
    return copied


@pytest.mark.parametrize("task", [Task.TOKEN_CLASSIFICATION, Task.TEXT_EMBEDDING])
def test_a_short_text_does_not_change_the_attention_of_long_ones(task: Task, tmp_path: Path) -> None:
    """BigBird turns its sparse attention off at a short batch, and leaves it off."""
    save_model(Pair("big_bird", task), tmp_path)
    case = ForwardCase(tmp_path, task)
    long, short = case.texts([80, 12], 0)
    # The reference has never read anything else.
    expected = case.expected(long)
    for given in (long, short, long, short, short, long):
        [found] = run(case.forward, [given])
        if given is long:
            torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
