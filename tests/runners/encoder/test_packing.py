"""The forward passes against `transformers`, in batches of all kinds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from runners.encoder.packed_attention import current
from runners.encoder.packing import PackedForward
from runners.modeling.packed_linear import PackedLinear, pack_linears, warm_linears
from tests.conftest import ModelFolder
from tests.families import FAMILIES
from tests.forwards import ROWS, ForwardCase, run

TOLERANCE = 2e-5


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_batch_equals_transformers(family: str, task: str, model_folder: ModelFolder) -> None:
    """Random batches of random lengths."""
    case = ForwardCase(model_folder(family, task), task)
    assert isinstance(case.forward, PackedForward), case.reason
    random = np.random.default_rng(1)
    batches: list[Any] = [
        [1],
        [2, 300],
        [512, 1, 17],
        *(random.integers(1, 90, random.integers(1, 24)) for _ in range(3)),
    ]
    for seed, lengths in enumerate(batches):
        texts = case.texts([int(length) for length in lengths], seed)
        for text, found in zip(texts, run(case.forward, texts), strict=True):
            torch.testing.assert_close(found, case.expected(text), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("task", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_bit_identical_in_any_batch(family: str, task: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task)
    texts = case.texts([7, 33, 1, 250, 16, 48, 90, 12], seed=3)
    alone = [run(case.forward, [text])[0] for text in texts]
    for order in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 3, 1], [4, 4, 4, 2], [6, 5]):
        for index, found in zip(order, run(case.forward, [texts[index] for index in order]), strict=True):
            assert torch.equal(found, alone[index])


def test_mean_pooling_head_of_modernbert(model_folder: ModelFolder) -> None:
    case = ForwardCase(
        model_folder("modernbert", "sequence_classification", classifier_pooling="mean"), "sequence_classification"
    )
    assert isinstance(case.forward, PackedForward), case.reason
    texts = case.texts([5, 60, 17], seed=0)
    for text, found in zip(texts, run(case.forward, texts), strict=True):
        torch.testing.assert_close(found, case.expected(text), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "bert"])
def test_a_padding_token_in_a_text(family: str, model_folder: ModelFolder) -> None:
    """RoBERTa gives it no position of its own, and neither does the packed batch."""
    case = ForwardCase(model_folder(family, "token_classification"), "token_classification")
    texts = case.texts([9, 20], seed=0)
    texts[1].input_ids[4:6] = case.model.config.pad_token_id
    for text, found in zip(texts, run(case.forward, texts), strict=True):
        torch.testing.assert_close(found, case.expected(text), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_batch_stays(fails: bool, model_folder: ModelFolder) -> None:
    """The layout holds keys and values of all rows."""
    case = ForwardCase(model_folder("bert", "fill_mask"), "fill_mask")
    if fails:
        case.model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        run(case.forward, case.texts([9, 20], seed=0))
    assert not hasattr(current, "layout")


def test_a_model_that_cannot_be_packed_says_why(model_folder: ModelFolder) -> None:
    """A convolution mixes the rows of texts."""
    case = ForwardCase(
        model_folder("deberta-v2", "sequence_classification", conv_kernel_size=3), "sequence_classification"
    )
    assert case.reason.startswith(
        "texts are run in batches sorted by length, padded on the right: DebertaV2ForSequenceClass"
    )
    assert "not packed, since its scores differ by" in case.reason
    assert case.model.config._attn_implementation != "packed"


def test_linears_are_packed_and_equal(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("bert", "sequence_classification"), "sequence_classification")
    if not any(isinstance(module, PackedLinear) for module in case.model.modules()):
        pytest.skip("this CPU has no oneDNN linear layers that agree with the stock ones")
    assert not any(type(module) is torch.nn.Linear for module in case.model.modules())
    warm_linears(case.model, [1, 16, 32])
    [text] = case.texts([24], 0)
    torch.testing.assert_close(run(case.forward, [text])[0], case.expected(text), atol=TOLERANCE, rtol=0)


class ReadsWeight(torch.nn.Module):
    """A model that looks at the weight of a layer, or computes with it."""

    def __init__(self, computes: bool) -> None:
        super().__init__()
        self.linear, self.other, self.computes = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16), computes

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.other(self.linear(rows))
        return hidden @ self.linear.weight if self.computes else hidden.to(self.linear.weight.dtype)


@pytest.mark.parametrize(("computes", "kind"), [(False, PackedLinear), (True, torch.nn.Linear)])
@torch.inference_mode()
def test_a_layer_whose_weight_is_computed_with_stays_stock(
    computes: bool, kind: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = ReadsWeight(computes), torch.randn(1, 4, 16)
    expected = model(rows)
    said = pack_linears(model, lambda: model(rows), expected)
    if said.startswith("stock"):
        pytest.skip(f"this CPU has no packed layers: {said}")
    assert [type(model.linear), type(model.other)] == [kind, PackedLinear]
    assert ("1 stay stock, because ReadsWeight reads their weights" in said) == computes
    torch.testing.assert_close(model(rows), expected)


def test_linears_stay_where_the_operator_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr("runners.modeling.packed_linear.PackedLinear", missing)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert (
        pack_linears(model, lambda: model(torch.ones(1, 4)), model(torch.ones(1, 4)))
        == "stock linear layers: packed ones cannot be made (no such operator)"
    )
    assert type(model[0]) is torch.nn.Linear


def test_linears_stay_where_packed_ones_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.modeling.packed_linear._equal", lambda *_: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert "give other results" in pack_linears(model, lambda: model(torch.ones(1, 4)), model(torch.ones(1, 4)))
    assert type(model[0]) is torch.nn.Linear
