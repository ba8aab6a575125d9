"""Reductions of texts' rows on a GPU: as many kernels for 64 texts as for 2, and no bit of another text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runners.encoder import pooled_head
from runners.encoder.packing import PackedForward
from runners.encoder.segments import Segments
from runners.encoder.tasks.pooling import Pooling
from runners.encoder.tasks.sparse_pooling import SparsePooling
from tests.conftest import ModelFolder
from tests.dispatched import DispatchedCalls, WithoutWaits
from tests.emulated_gpu import emulate_gpu
from tests.forwards import ForwardCase, attach_packed

TOKENS, HIDDEN = 256, 32
FEW, MANY = [TOKENS // 2] * 2, [TOKENS // 64] * 64
# Texts that have other numbers of tokens, and one without any, as the unused sequences of a graph.
UNEVEN = [3, 1, 60, 0, 17, 128]
MODES = ["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]


@pytest.mark.parametrize("modes", [[mode] for mode in MODES] + [["cls", "mean"]], ids=",".join)
def test_pooling(modes: list[str]) -> None:
    counts = {}
    pooling = Pooling(modes, [nn.Linear(HIDDEN * len(modes), 7, device="meta")], True)
    for lengths in (FEW, MANY):
        rows = torch.empty(TOKENS + 8, HIDDEN, dtype=torch.float16, device="meta")
        offsets = torch.empty(len(lengths) + 1, dtype=torch.int32, device="meta")
        with DispatchedCalls() as calls, WithoutWaits():
            vectors = pooling.pool(rows, Segments(lengths, rows.device, offsets))
        assert (vectors.shape, vectors.dtype) == ((len(lengths), 7), torch.float32)
        counts[len(lengths)] = calls.kernels
    assert counts[2] == counts[64]


@pytest.mark.parametrize("pooling", [SparsePooling(), SparsePooling(sums=True)], ids=["max", "sum"])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_head_in_parts(
    parts: int, pooling: SparsePooling, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("bert", "fill_mask")
    counts = count_kernels(folder, "sparse_embedding", parts, pooling, monkeypatch)
    assert counts[2] == counts[64]


def test_a_mean_head(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("modernbert", "sequence_classification", classifier_pooling="mean")
    counts = count_kernels(folder, "sequence_classification", 1, None, monkeypatch)
    assert counts[2] == counts[64]


def count_kernels(
    folder: Path, task: str, parts: int, pooling: SparsePooling | None, monkeypatch: pytest.MonkeyPatch
) -> dict[int, Counter[str]]:
    """The kernels of a packed batch, none of which waits, without those of its attention, by the number of texts."""
    case = ForwardCase(folder, task, pooling=pooling)
    assert isinstance(case.forward, PackedForward), case.reason
    forward = attach_packed(case)
    if parts > 1:
        monkeypatch.setattr(pooled_head, "_PART_BYTES", {"cpu": TOKENS // parts * 4 * case.model.config.vocab_size})
    counts = {}
    with emulate_gpu(), torch.inference_mode():
        # That of the emulated GPU loops over the texts.
        monkeypatch.setattr("runners.encoder.packed_attention.attend_on_gpu", lambda query, *_: query.transpose(1, 2))
        for lengths in (FEW, MANY):
            batch = forward.lay_out(case.texts(lengths, 0))
            tensors = case.inputs.upload(batch.arrays)
            with DispatchedCalls() as calls, WithoutWaits():
                forward.compute(batch, tensors)
            counts[len(lengths)] = calls.kernels
    return counts


@pytest.mark.parametrize("mode", MODES)
def test_other_texts_and_unused_sequences_change_no_bit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond the last text are NaN, as a kernel may leave them."""
    monkeypatch.setattr("runners.encoder.segments._is_looped", lambda _: False)
    random = np.random.default_rng(0)
    rows = torch.from_numpy(random.standard_normal((sum(UNEVEN) + 7, HIDDEN), dtype=np.float32))
    rows[sum(UNEVEN) :] = torch.nan
    offsets = torch.from_numpy(np.cumsum([0, *UNEVEN, 0, 0], dtype=np.int32))
    pooled = Pooling([mode], [], True).pool(rows, Segments(UNEVEN, rows.device, offsets))
    others = rows.clone()
    others[4:64] = torch.nan
    beside = Pooling([mode], [], True).pool(others, Segments(UNEVEN, rows.device, offsets))
    for text, length in enumerate(UNEVEN):
        if not length:
            continue
        assert length == 60 or torch.equal(pooled[text], beside[text])
        [expected] = pool_alone(rows[sum(UNEVEN[:text]) :][:length], mode)
        torch.testing.assert_close(pooled[text], expected, atol=1e-6, rtol=0)


def pool_alone(rows: Tensor, mode: str) -> Sequence[Tensor]:
    """The vector of one text of length 1, by sentence-transformers."""
    from sentence_transformers.sentence_transformer.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling as Reference

    features = {"token_embeddings": rows[None], "attention_mask": torch.ones(1, len(rows), dtype=torch.int64)}
    vectors: Tensor = Normalize()(Reference(HIDDEN, mode)(features))["sentence_embedding"]
    return list(vectors)
