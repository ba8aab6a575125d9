"""Packed attention on a GPU, whose kernels are emulated (tests/emulated_gpu.py), against `transformers`."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from runners.encoder.gpu_attention import attend_on_gpu
from runners.encoder.packed_attention import Layout
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.conftest import ModelFolder
from tests.dispatched import DispatchedCalls, WithoutWaits
from tests.emulated_gpu import HOPPER, TURING, emulate_gpu
from tests.families import FAMILIES, Family, wordpiece
from tests.forwards import ROWS, ForwardCase, attach_packed, run

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
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(2, 2, 16), (4, 2, 12), (4, 1, 8), (3, 3, 5)])
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


def test_rectangles_have_a_fused_kernel_for_grouped_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory-efficient kernel has none: use_mem_efficient_attention in sdp_utils.cpp."""
    heads, attend = list[tuple[int, int, int]](), functional.scaled_dot_product_attention

    def note(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        heads.append((query.shape[1], key.shape[1], value.shape[1]))
        return attend(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", note)
    layout = make_layout([40, 9], 52)
    query, key = torch.randn(1, 4, 52, 8), torch.randn(1, 2, 52, 8)
    with emulate_gpu():
        attend_on_gpu(query, key, key, layout, None, 8, False)
    assert {*heads} == {(4, 4, 4)}


def check_packed(case: ForwardCase) -> None:
    """Compare a packed batch with the stock model."""
    forward = attach_packed(case)
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu():
        found = run(forward, texts)
    for text, rows in zip(texts, found, strict=True):
        torch.testing.assert_close(rows, case.expected(text), atol=2e-5, rtol=0)


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_equals_transformers(family: str, task: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task)
    check_packed(case)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_other_texts_of_a_batch_change_no_bit(family: str, dtype: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, "token_classification"), "token_classification", dtype=dtype)
    forward = attach_packed(case)
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
    check_packed(case)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_kernels_of_a_batch_do_not_grow_with_its_texts(
    family: str, task: str, dtype: str, model_folder: ModelFolder
) -> None:
    case = ForwardCase(model_folder(family, task), task, dtype=dtype)
    forward = attach_packed(case)
    counts = []
    with emulate_gpu():
        # DeBERTa's first batch makes tables.
        run(forward, case.texts([9], seed=0))
        for texts in (2, 8, 64):
            with DispatchedCalls() as calls:
                # All of them fit into rectangles of one size.
                run(forward, case.texts([480 // texts] * texts, seed=0))
            counts.append(calls.kernels.total())
    assert len({*counts}) == 1
    assert counts[0] > 20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_in_a_batch_waits_for_the_gpu(family: str, task: str, dtype: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task, dtype=dtype)
    forward = attach_packed(case)
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu(), WithoutWaits():
        run(forward, texts)


def test_nothing_in_a_decoders_batch_waits_for_the_gpu(tmp_path: Path) -> None:
    decoder = Family("qwen3", wordpiece, {"num_key_value_heads": 1, "head_dim": 16})
    case = ForwardCase(decoder.save(tmp_path, "text_embedding"), "text_embedding")
    forward = attach_packed(case)
    texts = case.texts(LENGTHS, seed=0)
    with emulate_gpu(), WithoutWaits():
        run(forward, texts)
