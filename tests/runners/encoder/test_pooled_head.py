"""The head of a masked language model on a few rows at a time, against the stock model's scores of whole texts."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from runners.encoder import pooled_head
from runners.encoder.pooled_head import cut_parts
from runners.encoder.tasks.sparse_pooling import SparsePooling
from tests.conftest import ModelFolder
from tests.forwards import ForwardCase, run

LENGTHS = (7, 2, 150, 33, 64, 1, 31)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), most=st.integers(1, 50))
def test_parts_have_all_rows_in_order(lengths: list[int], most: int) -> None:
    parts = list(cut_parts(lengths, most))
    assert [part.start for part in parts] == [0, *accumulate(part.rows for part in parts)][:-1]
    assert all(0 < part.rows <= most for part in parts)
    counts = [pair for part in parts for pair in enumerate(part.counts, part.first)]
    assert [text for text, _ in counts] == sorted(text for text, _ in counts)
    for text, length in enumerate(lengths):
        pieces = [count for position, count in counts if position == text]
        # As if the text were alone.
        [*full, rest] = pieces
        assert full == [most] * ((length - 1) // most)
        assert sum(full) + rest == length


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("pooling", [SparsePooling(), SparsePooling(sums=True, logarithms=2)], ids=["max", "sum"])
@pytest.mark.parametrize("rows", [32, 10**6])
def test_pooled_scores(
    family: str, pooling: SparsePooling, rows: int, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_head, "_PART_BYTES", {"cpu": rows * 4 * 30522})
    case = ForwardCase(model_folder(family, "fill_mask"), "sparse_embedding", pooling=pooling)
    texts = case.texts(LENGTHS, 1)
    heads: list[int] = []
    handle = case.model.register_forward_hook(lambda _, __, output: heads.append(output.logits.shape[1]))
    found = run(case.forward, texts)
    handle.remove()
    for text, scores in zip(texts, found, strict=True):
        torch.testing.assert_close(scores, case.expected(text), rtol=1e-4, atol=1e-4)
    least = pooled_head._LEAST_ROWS
    assert max(heads) <= max(sum(LENGTHS), least) + 4
    if rows == least and case.model.config.vocab_size > 20_000:
        assert max(heads) == least
        assert sum(heads) >= sum(LENGTHS)


@pytest.mark.parametrize("sums", [True, False])
def test_the_other_texts_of_a_batch_change_no_bit(
    sums: bool, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However they divide the batch into parts."""
    monkeypatch.setattr(pooled_head, "_PART_BYTES", {"cpu": 64 * 4 * 30522})
    case = ForwardCase(model_folder("bert", "fill_mask"), "sparse_embedding", pooling=SparsePooling(sums))
    text, *others = case.texts((150, 3, 50, 61, 9), 2)
    [alone] = run(case.forward, [text])
    for batch in ([text, *others], [*others, text], [others[1], text, others[0]]):
        [beside] = [scores for each, scores in zip(batch, run(case.forward, batch), strict=True) if each is text]
        assert torch.equal(beside, alone)


def test_the_model_runs_its_layers_again_after_a_failure(model_folder: ModelFolder) -> None:
    class Failing(SparsePooling):
        def add(self, *_: Any) -> None:
            raise RuntimeError("no")

    case = ForwardCase(model_folder("bert", "fill_mask"), "sparse_embedding")
    texts = case.texts(LENGTHS, 3)
    expected = run(case.forward, texts)
    pooling, case.inputs._pooling = case.inputs._pooling, Failing()
    with pytest.raises(RuntimeError, match="no"):
        run(case.forward, texts)
    case.inputs._pooling = pooling
    for one, other in zip(run(case.forward, texts), expected, strict=True):
        assert torch.equal(one, other)
    assert "forward" not in case.model.base_model.__dict__
