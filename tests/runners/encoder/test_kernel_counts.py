"""How many kernels the reductions of texts have on a GPU: as many for 64 texts as for 2 with as many tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from runners.encoder import pooled_head
from runners.encoder.packing import PackedForward
from runners.encoder.segments import Segments
from runners.encoder.tasks.pooling import Pooling
from runners.encoder.tasks.sparse_pooling import SparsePooling
from tests.conftest import ModelFolder
from tests.emulated_gpu import emulate_gpu
from tests.forwards import ForwardCase

TOKENS, HIDDEN = 256, 32
FEW, MANY = [TOKENS // 2] * 2, [TOKENS // 64] * 64
# Of texts that have other numbers of tokens, and a text without any, as unused places of a graph.
UNEVEN = [3, 1, 60, 0, 17, 128]
MODES = ["cls", "lasttoken", "max", "mean", "mean_sqrt_len_tokens", "weightedmean"]
# What waits for a GPU.
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class KernelCounts(TorchDispatchMode):
    """Counts the operators that run kernels; a view of a tensor runs none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.counts[str(func.overloadpacket).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("modes", [[mode] for mode in MODES] + [["cls", "mean"]], ids=",".join)
def test_pooling(modes: list[str]) -> None:
    counts = {}
    pooling = Pooling(modes, [nn.Linear(HIDDEN * len(modes), 7, device="meta")], True)
    for lengths in (FEW, MANY):
        rows = torch.empty(TOKENS + 8, HIDDEN, dtype=torch.float16, device="meta")
        offsets = torch.empty(len(lengths) + 1, dtype=torch.int32, device="meta")
        with KernelCounts() as kernels:
            vectors = pooling.pool(rows, Segments(lengths, rows.device, offsets))
        assert (vectors.shape, vectors.dtype) == ((len(lengths), 7), torch.float32)
        counts[len(lengths)] = kernels.counts
    assert counts[2] == counts[64]
    assert not WAITING & {*counts[2]}


@pytest.mark.parametrize("pooling", [SparsePooling(), SparsePooling(sums=True)], ids=["max", "sum"])
@pytest.mark.parametrize("parts", [1, 4])
def test_a_head_in_parts(
    parts: int, pooling: SparsePooling, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = model_folder("bert", "fill_mask")
    counts = count_kernels(folder, "sparse_embedding", parts, pooling, monkeypatch)
    assert counts[2] == counts[64]
    assert not WAITING & {*counts[2]}


def test_a_mean_head(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder("modernbert", "sequence_classification", classifier_pooling="mean")
    counts = count_kernels(folder, "sequence_classification", 1, None, monkeypatch)
    assert counts[2] == counts[64]
    assert not WAITING & {*counts[2]}


def count_kernels(
    folder: Path, task: str, parts: int, pooling: SparsePooling | None, monkeypatch: pytest.MonkeyPatch
) -> dict[int, Counter[str]]:
    """The kernels of a packed batch without those of its attention, by the number of texts."""
    case = ForwardCase(folder, task, pooling=pooling)
    assert isinstance(case.forward, PackedForward), case.reason
    case.forward.detach()
    forward = PackedForward(case.inputs)
    forward.attach()
    if parts > 1:
        monkeypatch.setattr(pooled_head, "_PART_BYTES", {"cpu": TOKENS // parts * 4 * case.model.config.vocab_size})
    counts = {}
    with emulate_gpu(), torch.inference_mode():
        # That of the emulated GPU loops over the texts.
        monkeypatch.setattr("runners.encoder.packed_attention.attend_on_gpu", lambda query, *_: query.transpose(1, 2))
        for lengths in (FEW, MANY):
            batch = forward.lay_out(case.texts(lengths, 0))
            tensors = case.inputs.upload(batch.arrays)
            with KernelCounts() as kernels:
                forward.compute(batch, tensors)
            counts[len(lengths)] = kernels.counts
    return counts


@pytest.mark.parametrize("mode", MODES)
def test_other_texts_and_unused_places_change_no_bit(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
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
