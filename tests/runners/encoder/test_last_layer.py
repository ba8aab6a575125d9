"""The last layer of a packed batch, on the rows that the model's head reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runners.encoder.last_layer import LastLayer, make_read_rows
from runners.encoder.packing import ROW_MULTIPLE, NarrowForward, PackedForward
from runners.modeling.packed_linear import PackedLinear
from tests.conftest import ModelFolder
from tests.forwards import ForwardCase, run

NOTE = "its last layer runs only on the rows that the task reads"


@pytest.mark.parametrize("task", ["sequence_classification", "fill_mask"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "electra"])
def test_the_feed_forward_of_the_last_layer_runs_on_few_rows(family: str, task: str, model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder(family, task), task)
    assert NOTE in case.reason
    counts = count_feed_forward_rows(case)
    run(case.forward, case.texts([40, 60, 33], seed=1))
    first, last = counts[0], counts[-1]
    assert (first, last) == (136, ROW_MULTIPLE)


@pytest.mark.parametrize(
    ("family", "task", "why"),
    [
        ("bert", "token_classification", "the head reads all rows"),
        ("albert", "sequence_classification", "its layers are one module"),
        ("modernbert", "sequence_classification", "it normalizes before its projections"),
    ],
)
def test_other_models_run_the_last_layer_on_all_rows(
    family: str, task: str, why: str, model_folder: ModelFolder
) -> None:
    case = ForwardCase(model_folder(family, task), task)
    assert type(case.forward) is PackedForward, why
    assert NOTE not in case.reason
    assert not any(module._forward_pre_hooks for module in case.model.modules())


def test_a_batch_without_masks_has_no_rows(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("bert", "fill_mask"), "fill_mask")
    assert isinstance(case.forward, NarrowForward)
    with_masks, without = case.texts([20, 30], seed=2)
    without.input_ids[:] = 11
    assert [len(rows) for rows in run(case.forward, [without, without])] == [0, 0]
    [found, nothing] = run(case.forward, [with_masks, without])
    torch.testing.assert_close(found, case.expected(with_masks), atol=2e-5, rtol=0)
    assert len(nothing) == 0


def count_feed_forward_rows(case: ForwardCase) -> list[int]:
    """The rows that each layer's first feed-forward layer gets, filled when the model runs."""
    counts: list[int] = []
    width = getattr(case.model.config, "intermediate_size", None) or case.model.config.hidden_dim
    for module in case.model.modules():
        if isinstance(module, nn.Linear | PackedLinear) and module.out_features == width:
            module.register_forward_hook(lambda _, args, __: counts.append(args[0].shape[1]))
    return counts


class Stack(nn.Module):
    """Layers of three projections each, and one projection outside."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({name: nn.Linear(4, 4) for name in "qkv"}) for _ in range(2))
        self.outside = nn.Linear(4, 4)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layers.0.q", "layers.0.k", "layers.0.v"], "not in the last one"),
        (["layers.1.q", "layers.1.k", "outside"], "not in the last one"),
        (["layers.1.q", "layers.1.k", "layers.1.k"], "not projections of their own"),
        (["layers.1.q", "layers.1.k", None], "not projections of their own"),
    ],
)
def test_projections_elsewhere_are_refused(names: list[str | None], message: str) -> None:
    model = Stack()
    projections = [None if name is None else model.get_submodule(name) for name in names]
    with pytest.raises(ValueError, match=message):
        LastLayer(model, projections)


@pytest.mark.parametrize(("positions", "rows"), [([0, 5], [0, 5, 0, 0]), ([1, 2, 3, 4], [1, 2, 3, 4]), ([], None)])
def test_read_rows_are_padded_with_the_first(positions: list[int], rows: list[int] | None) -> None:
    read = make_read_rows(torch.tensor(positions, dtype=torch.int64), [0, len(positions)], 4)
    assert (None if read is None else read.rows.tolist()) == rows
