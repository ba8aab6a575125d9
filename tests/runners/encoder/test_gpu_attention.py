"""Packed attention on a GPU, whose kernels are emulated (tests/emulated_gpu.py), against `transformers`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runners.encoder.gpu_attention import attend_on_gpu
from runners.encoder.packed_attention import Layout
from runners.encoder.packing import PackedForward
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.conftest import ModelFolder
from tests.emulated_gpu import HOPPER, TURING, emulate_gpu
from tests.families import FAMILIES, Family, wordpiece
from tests.forwards import ROWS, ForwardCase, run

LENGTHS = [7, 33, 1, 250, 16, 48, 90, 12]


def make_layout(lengths: list[int], total: int) -> Layout:
    bounds = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    sequences = torch.tensor([*bounds, total], dtype=torch.int32)
    return Layout(bounds, sequences, max(*lengths, total - bounds[-1]), total)


def attend_by_mask(
    query: Tensor, key: Tensor, value: Tensor, bounds: list[int], window: int | None, is_causal: bool
) -> Tensor:
    """Each text alone, with a mask: [1, rows of the texts, heads, d]."""
    parts = []
    for start, end in pairwise(bounds):
        places = torch.arange(end - start)
        distances = places[:, None] - places
        attention_mask = torch.ones_like(distances, dtype=torch.bool) if window is None else distances.abs() < window
        if is_causal:
            attention_mask = attention_mask & (distances >= 0)
        query_rows, key_rows, value_rows = (each[:, :, start:end].double() for each in (query, key, value))
        attended = functional.scaled_dot_product_attention(
            query_rows, key_rows, value_rows, attn_mask=attention_mask, enable_gqa=True
        )
        parts.append(attended.transpose(1, 2))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("capability", [HOPPER, TURING])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 1, 8, 65, 129])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(2, 2, 16), (4, 2, 12), (3, 3, 5)])
def test_windows_and_heads_equal_a_mask(
    heads: int,
    key_heads: int,
    width: int,
    is_causal: bool,
    window: int | None,
    dtype: torch.dtype,
    capability: tuple[int, int],
) -> None:
    """Rows that no kernel writes are NaN, so that the padding rows must be covered, too."""
    lengths = [1, 17, 130, 64, 5]
    layout = make_layout(lengths, sum(lengths) + 7)
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, layout.total, each, width, generator=random).to(dtype).transpose(1, 2)
        for each in (heads, key_heads, key_heads)
    )
    with emulate_gpu(capability):
        found = attend_on_gpu(query, key, value, layout, None, window, is_causal)
    assert found.isfinite().all()
    assert found.shape == (1, layout.total, heads, width)
    expected = attend_by_mask(query, key, value, layout.bounds, window, is_causal)
    assert measure_difference(found[:, : sum(lengths)].flatten(0, 2), expected.flatten(0, 2)) <= TOLERANCES[dtype]


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_equals_transformers(family: str, task: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task)
    forward = PackedForward(case.inputs)
    forward.attach()
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu():
        found = run(forward, texts)
    for text, rows in zip(texts, found, strict=True):
        torch.testing.assert_close(rows, case.expected(text), atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_texts_of_a_batch_change_no_bit(family: str, dtype: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, "token_classification"), "token_classification", dtype=dtype)
    forward = PackedForward(case.inputs)
    forward.attach()
    texts, others = case.texts(LENGTHS, seed=0), case.texts(LENGTHS, seed=1)
    with emulate_gpu():
        found = run(forward, texts)
        mixed = run(forward, [text if index % 2 else others[index] for index, text in enumerate(texts)])
    assert all(rows.isfinite().all() for rows in found)
    assert all(map(torch.equal, mixed[1::2], found[1::2]))


@pytest.mark.parametrize("layers", [("full_attention", "full_attention"), ("full_attention", "sliding_attention")])
def test_an_embedder_with_a_decoder_equals_transformers(layers: tuple[str, str], tmp_path: Path) -> None:
    """Qwen3-Embedding and its like: causal attention, and fewer heads of keys than of queries."""
    decoder = Family("qwen3", wordpiece, {"num_key_value_heads": 1, "head_dim": 16, "use_sliding_window": True})
    decoder.save(tmp_path, "text_embedding", sliding_window=9, layer_types=list(layers))
    case = ForwardCase(tmp_path, "text_embedding")
    forward = PackedForward(case.inputs)
    forward.attach()
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu():
        found = run(forward, texts)
    for text, rows in zip(texts, found, strict=True):
        torch.testing.assert_close(rows, case.expected(text), atol=2e-5, rtol=0)


class OperatorCount(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that are called, but for those that only look at memory in another way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_a_batch_do_not_grow_with_its_texts(
    family: str, task: str, dtype: str, model_folder: ModelFolder
) -> None:
    case = ForwardCase(model_folder(family, task), task, dtype=dtype)
    forward = PackedForward(case.inputs)
    forward.attach()
    counts = []
    with emulate_gpu():
        # DeBERTa's first batch makes tables.
        run(forward, case.texts([9], seed=0))
        for texts in (2, 8, 64):
            with OperatorCount() as operators:
                # All of them fit into rectangles of one size.
                run(forward, case.texts([480 // texts] * texts, seed=0))
            counts.append(operators.count)
    assert len({*counts}) == 1
    assert counts[0] > 20


# Operators after which the CPU knows a number that a GPU has computed: it waits for that.
SYNCHRONIZING = {
    "_local_scalar_dense", "_unique2", "equal", "index_put_", "is_nonzero", "item", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip


class SynchronizationCheck(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operator that would synchronize with a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_masked = name == "index" and any(each.dtype == torch.bool for each in tensors[1:])
        assert name not in SYNCHRONIZING, f"{func} waits for the GPU"
        assert not is_masked, "a mask as an index waits for the GPU"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_a_batch_waits_for_the_gpu(family: str, task: str, dtype: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task, dtype=dtype)
    forward = PackedForward(case.inputs)
    forward.attach()
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu(), SynchronizationCheck():  # type: ignore[no-untyped-call]
        run(forward, texts)


def test_nothing_in_a_decoders_batch_waits_for_the_gpu(tmp_path: Path) -> None:
    decoder = Family("qwen3", wordpiece, {"num_key_value_heads": 1, "head_dim": 16})
    case = ForwardCase(decoder.save(tmp_path, "text_embedding"), "text_embedding")
    forward = PackedForward(case.inputs)
    forward.attach()
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu(), SynchronizationCheck():  # type: ignore[no-untyped-call]
        run(forward, texts)
