"""Models with relative positions, packed: DeBERTa, DeBERTa-v2, MPNet and T5."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from runners.encoder.forward import PaddedForward
from runners.encoder.packing import PackedForward
from runners.encoder.relative_attention import RelativeAttention
from tests.conftest import ModelFolder
from tests.dispatched import DispatchedCalls
from tests.emulated_gpu import emulate_gpu
from tests.families import Family, deberta_unigram, wordpiece
from tests.forwards import ForwardCase, run

LENGTHS = [7, 33, 1, 250, 16, 48, 90, 12]
DEBERTA = {
    "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 32,
    "max_position_embeddings": 512,
}  # fmt: skip
# As the published checkpoints of DeBERTa-v3, with buckets that the texts here reach beyond.
DEBERTA_V3 = DEBERTA | {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_buckets": 32}
FAMILIES = {
    "DeBERTa": Family("deberta", deberta_unigram, DEBERTA),
    "DeBERTa without p2c": Family("deberta", deberta_unigram, DEBERTA | {"pos_att_type": ["c2p"]}),
    "DeBERTa, distances beyond the last": Family("deberta", deberta_unigram, DEBERTA | {"max_relative_positions": 24}),
    "DeBERTa-v2": Family("deberta-v2", deberta_unigram, DEBERTA),
    "DeBERTa-v2 without c2p": Family("deberta-v2", deberta_unigram, DEBERTA | {"pos_att_type": ["p2c"]}),
    "DeBERTa-v2 without relative positions": Family(
        "deberta-v2", deberta_unigram, DEBERTA | {"relative_attention": False, "position_biased_input": True}
    ),
    "DeBERTa-v3": Family("deberta-v2", deberta_unigram, DEBERTA_V3),
    "MPNet": Family("mpnet", wordpiece),
    "T5": Family("t5", wordpiece, {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16}),
}
DEVICES: dict[str, Callable[[], AbstractContextManager[None]]] = {"cpu": nullcontext, "gpu": emulate_gpu}
TASK = "token_classification"


@pytest.fixture
def make_case(tmp_path: Path) -> Callable[..., ForwardCase]:
    def make(family: str, task: str = TASK, dtype: str = "float32", **config: Any) -> ForwardCase:
        return ForwardCase(FAMILIES[family].save(tmp_path / "model", task, **config), task, dtype=dtype)

    return make


MakeCase = Callable[..., ForwardCase]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_batches_equal_transformers(family: str, device: str, make_case: MakeCase) -> None:
    case = make_case(family)
    assert type(case.forward) is PackedForward, case.reason
    texts = case.texts(LENGTHS, seed=0)
    with DEVICES[device]():
        found = run(case.forward, texts)
    for text, rows in zip(texts, found, strict=True):
        torch.testing.assert_close(rows, case.expected(text), atol=5e-5, rtol=0)


@pytest.mark.parametrize("task", ["fill_mask", "sequence_classification", "text_embedding"])
@pytest.mark.parametrize("family", ["DeBERTa", "DeBERTa-v3", "MPNet"])
def test_every_task_is_packed(family: str, task: str, make_case: MakeCase) -> None:
    case = make_case(family, task)
    assert isinstance(case.forward, PackedForward), case.reason
    texts = case.texts(LENGTHS, seed=0)
    for text, rows in zip(texts, run(case.forward, texts), strict=True):
        torch.testing.assert_close(rows, case.expected(text), atol=5e-5, rtol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["DeBERTa", "DeBERTa-v3", "MPNet", "T5"])
def test_other_texts_change_no_bit_even_if_they_are_nan(
    family: str, dtype: str, device: str, make_case: MakeCase
) -> None:
    case = make_case(family, dtype=dtype)
    assert isinstance(case.forward, PackedForward), case.reason
    embeddings = next(module for module in case.model.modules() if isinstance(module, nn.Embedding))
    with torch.inference_mode():
        embeddings.weight[11] = torch.nan
    texts, others = case.texts(LENGTHS, seed=0), case.texts(LENGTHS, seed=1)
    for text in texts:
        text.input_ids[text.input_ids == 11] = 12
    for other in others:
        other.input_ids[:] = 11
    with DEVICES[device]():
        found = run(case.forward, texts)
        mixed = run(case.forward, [text if index % 2 else others[index] for index, text in enumerate(texts)])
    assert all(rows.isnan().all() for rows in mixed[::2])
    assert all(rows.isfinite().all() for rows in found)
    assert all(map(torch.equal, mixed[1::2], found[1::2]))


@pytest.mark.parametrize("family", ["DeBERTa", "DeBERTa-v3", "MPNet", "T5"])
def test_kernels_on_a_gpu_do_not_grow_with_the_texts(family: str, make_case: MakeCase) -> None:
    case = make_case(family)
    counts = []
    for copies in (1, 16):
        texts = case.texts([20, 30, 60] * copies, seed=0)
        with emulate_gpu():
            # The first batch of a length may make tables.
            run(case.forward, texts)
            with DispatchedCalls() as calls:
                run(case.forward, texts)
        counts.append(calls.kernels)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["DeBERTa", "DeBERTa-v3", "MPNet", "T5"])
def test_no_tensor_has_all_pairs_of_rows(family: str, device: str, make_case: MakeCase) -> None:
    case = make_case(family)
    texts = case.texts([16] * 64, seed=0)
    with DEVICES[device](), DispatchedCalls() as calls:
        run(case.forward, texts)
    # Queries, keys and values of all heads have 1,024 x 96 numbers.
    assert calls.largest < 1024**2 // 8


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_stock_again_after_a_detach(family: str, make_case: MakeCase) -> None:
    case = make_case(family)
    case.forward.detach()
    [text] = case.texts([30], seed=0)
    [rows] = run(PaddedForward(case.inputs), [text])
    torch.testing.assert_close(rows, case.expected(text), atol=2e-5, rtol=0)
    replaced = [
        name for module in case.model.modules() for name in vars(module) if callable(vars(type(module)).get(name))
    ]
    assert not replaced


@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        pytest.param("DeBERTa-v3", {"conv_kernel_size": 3}, "its scores differ", id="a convolution over rows"),
        pytest.param("DeBERTa", {"talking_head": True}, "its attention mixes heads", id="heads that are mixed"),
    ],
)
def test_what_is_computed_otherwise_is_padded(
    family: str, config: dict[str, Any], why: str, make_case: MakeCase
) -> None:
    case = make_case(family, **config)
    assert type(case.forward) is PaddedForward
    assert why in case.reason
    [text] = case.texts([30], seed=0)
    [rows] = run(case.forward, [text])
    torch.testing.assert_close(rows, case.expected(text), atol=2e-5, rtol=0)


def test_other_models_keep_their_attention(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("bert", TASK), TASK)
    before = [dict(vars(module)) for module in case.model.modules()]
    attention = RelativeAttention(case.model)
    attention.attach()
    assert [dict(vars(module)) for module in case.model.modules()] == before
