"""Linear layers of the same input, computed as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from runners.modeling import merged_linears
from runners.modeling.linear_kernels import OneDNNKernel
from runners.modeling.merged_linears import find_groups, merge
from runners.modeling.packed_linear import PackedLinear, pack_linears

WIDTH = 512
TRIED_ROWS = {16: 2, 64: 2}


class Attention(nn.Module):
    """Queries, keys and values of one input; `order` names the layers in the order of their calls."""

    def __init__(self, order: str = "qkv", bias: str = "qkv", key_width: int = WIDTH) -> None:
        super().__init__()
        self.order = order
        widths = {"q": WIDTH, "k": key_width, "v": key_width}
        self.layers = nn.ModuleDict({name: nn.Linear(WIDTH, widths[name], bias=name in bias) for name in "qkv"})
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, rows: Tensor) -> Tensor:
        results = {name: self.layers[name](rows) for name in self.order}
        weights = (results["q"][..., :64] * results["k"][..., :64]).mean(-1, keepdim=True)
        result: Tensor = self.out(rows * weights + results["v"].mean(-1, keepdim=True))
        return result


class Stack(nn.Module):
    """Layers of attention, or one that is called twice."""

    def __init__(self, *layers: Attention) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, rows: Tensor) -> Tensor:
        for layer in self.layers:
            rows = layer(rows)
        return rows


def name_groups(model: nn.Module, rows: Tensor, parts_last: bool = True) -> list[list[str]]:
    names = {module: name for name, module in model.named_modules()}
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    groups = find_groups(linears, partial(model, rows), parts_last)
    return [[names[linear].removeprefix("layers.").replace(".layers", "") for linear in group] for group in groups]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param(lambda: [Attention(), Attention()], [["0.q", "0.k", "0.v"], ["1.k", "1.v"]], id="the last is two"),
        pytest.param(lambda: [Attention("kqv"), Attention()], [["0.k", "0.q", "0.v"], ["1.k", "1.v"]],
                     id="in the order of their calls"),
        pytest.param(lambda: [Attention(bias="qv"), Attention()], [["1.k", "1.v"]], id="some without a bias"),
        pytest.param(lambda: [Attention(bias=""), Attention()], [["0.q", "0.k", "0.v"], ["1.k", "1.v"]], id="no bias"),
        pytest.param(lambda: [Attention(key_width=64), Attention()], [["1.k", "1.v"]], id="some are small"),
        pytest.param(lambda: [Attention("qkvq"), Attention()], [["1.k", "1.v"]], id="one is called twice"),
        pytest.param(lambda: [Attention("qkv")] * 2 + [Attention()], [["0.q", "0.k", "0.v"], ["2.k", "2.v"]],
                     id="a layer that is used twice"),
    ],
)  # fmt: skip
@torch.inference_mode()
def test_layers_of_one_input_are_found(layers: Callable[[], list[Attention]], expected: list[list[str]]) -> None:
    assert name_groups(Stack(*layers()), torch.randn(1, 4, WIDTH)) == expected


@torch.inference_mode()
def test_the_last_queries_are_merged_too_where_they_run_on_all_rows() -> None:
    model, rows = Stack(Attention(), Attention()), torch.randn(1, 4, WIDTH)
    assert name_groups(model, rows, parts_last=False) == [["0.q", "0.k", "0.v"], ["1.q", "1.k", "1.v"]]


class ByKeyword(Stack):
    def forward(self, rows: Tensor) -> Tensor:
        [layer] = self.layers
        assert isinstance(layer, Attention)
        return torch.cat([layer.layers[name](input=rows) for name in "qkv"], -1)


@torch.inference_mode()
def test_layers_that_are_called_by_keyword_stay_alone() -> None:
    assert name_groups(ByKeyword(Attention()), torch.randn(1, 4, WIDTH)) == []


@torch.inference_mode()
def test_merged_layers_give_the_bits_of_layers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    group = (nn.Linear(WIDTH, 512), nn.Linear(WIDTH, 768), nn.Linear(WIDTH, 640))
    try:
        alone = [OneDNNKernel(layer.weight.detach(), layer.bias) for layer in group]
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this PyTorch has no {OneDNNKernel.name} kernel on this CPU: {error}")
    monkeypatch.setattr(merged_linears, "_is_better", lambda *_: True)
    parts = merge(group, OneDNNKernel, TRIED_ROWS)
    assert parts is not None
    for count in (1, 8, 100):
        rows = torch.randn(1, count, WIDTH)
        for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0), (2,), (0, 1, 2)):
            for index in order:
                assert torch.equal(parts[index](rows), alone[index](rows)), f"{count} rows, layer {index} of {order}"


@torch.inference_mode()
def test_no_result_is_kept_after_the_last_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_linears, "_is_better", lambda *_: True)
    calls: list[Tensor] = []

    class Counted(OneDNNKernel):
        def __call__(self, rows: Tensor) -> Tensor:
            calls.append(rows)
            return super().__call__(rows)

    parts = merge((nn.Linear(WIDTH, 512), nn.Linear(WIDTH, 512)), Counted, TRIED_ROWS)
    assert parts is not None
    rows = torch.randn(1, 8, WIDTH)
    for _ in range(2):
        for part in parts:
            part(rows)
    assert len(calls) == 2, "once for both layers, and once again when they are called again"


@torch.inference_mode()
def test_a_call_that_fails_leaves_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_linears, "_is_better", lambda *_: True)
    fails = False

    class Failing(OneDNNKernel):
        def __call__(self, rows: Tensor) -> Tensor:
            if fails:
                raise RuntimeError("no memory")
            return super().__call__(rows)

    parts = merge((nn.Linear(WIDTH, 512), nn.Linear(WIDTH, 512)), Failing, TRIED_ROWS)
    assert parts is not None
    earlier, rows = torch.randn(1, 8, WIDTH), torch.randn(1, 8, WIDTH)
    expected = [part(rows) for part in parts]
    parts[0](earlier)
    fails = True
    for part in parts:
        with pytest.raises(RuntimeError):
            part(rows)
    fails = False
    assert all(torch.equal(part(rows), right) for part, right in zip(parts, expected, strict=True))


@torch.inference_mode()
def test_layers_stay_alone_where_the_merged_shape_has_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such shape")

    monkeypatch.setattr(merged_linears, "_merge_weights", fail)
    model, rows = Stack(Attention()), torch.randn(1, 4, WIDTH)
    said = pack_linears(model, partial(model, rows), model(rows), TRIED_ROWS)
    if said.startswith("stock"):
        pytest.skip(f"this CPU has no packed layers: {said}")
    assert said.startswith("linear layers packed")
    assert "computed with others" not in said


@pytest.mark.parametrize("better", [True, False])
@torch.inference_mode()
def test_a_model_is_computed_with_merged_layers_if_they_are_better(
    better: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged_linears, "recall_or_try", lambda *_: better)
    model, rows = Stack(Attention(), Attention()), torch.randn(1, 4, WIDTH)
    expected = model(rows)
    said = pack_linears(model, partial(model, rows), expected, TRIED_ROWS, parts_last=True)
    if said.startswith("stock"):
        pytest.skip(f"this CPU has no packed layers: {said}")
    assert ("5 of them computed with others of the same input" in said) == better
    torch.testing.assert_close(model(rows), expected, atol=1e-5, rtol=1e-5)
    outputs = [module.kernel.outputs for module in model.modules() if isinstance(module, PackedLinear)]
    assert outputs == ([3 * WIDTH] * 3 + [WIDTH] + [WIDTH, 2 * WIDTH, 2 * WIDTH, WIDTH] if better else [WIDTH] * 8)


class Flattens(Stack):
    """Its code needs the output of a layer in memory of its own."""

    def forward(self, rows: Tensor) -> Tensor:
        [layer] = self.layers
        assert isinstance(layer, Attention)
        return torch.stack([layer.layers[name](rows).view(-1) for name in "qkv"])


@torch.inference_mode()
def test_layers_stay_alone_in_a_model_that_does_not_run_with_merged_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged_linears, "recall_or_try", lambda *_: True)
    model, rows = Flattens(Attention()), torch.randn(1, 4, WIDTH)
    expected = model(rows)
    said = pack_linears(model, partial(model, rows), expected, TRIED_ROWS)
    if said.startswith("stock"):
        pytest.skip(f"this CPU has no packed layers: {said}")
    assert "computed with others" not in said
    torch.testing.assert_close(model(rows), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("factor", "expected"), [(1.0, True), (1.001, False)])
def test_merged_layers_with_other_bits_are_not_better(
    factor: float, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_calls(calls: list[Callable[[Tensor], list[Tensor]]], rows: Tensor, tried: dict[int, int]) -> object:
        apart, together = ([call(rows[:, :count]) for count in sorted(tried)] for call in calls)
        return {count: [2.0, 1.0] for count in tried}, [
            apart,
            [[result * factor for result in each] for each in together],
        ]

    group = (nn.Linear(WIDTH, 512), nn.Linear(WIDTH, 512))
    monkeypatch.setattr(merged_linears, "time_calls", time_calls)
    monkeypatch.setattr(merged_linears, "recall_or_try", lambda _, try_out, __: try_out())
    with torch.inference_mode():
        assert (merge(group, OneDNNKernel, TRIED_ROWS) is not None) == expected
