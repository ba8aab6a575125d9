"""Linear layers of one input as one product, as on a GPU; `F.linear` computes them on a CPU too."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from runners.encoder import forward_selection
from runners.modeling.fused_linear import FusedLinear, fuse_linears
from runners.modeling.linear_kernels import VOCABULARY
from runners.modeling.packed_linear import pack_linears
from tests.conftest import ModelFolder
from tests.dispatched import DispatchedCalls
from tests.forwards import ForwardCase, run

WIDTH = 32
# Products of rows and weights.
PRODUCTS = ("aten.addmm.default", "aten.mm.default", "aten.linear.default")


def count_products(calls: DispatchedCalls) -> int:
    return sum(calls.kernels[name] for name in PRODUCTS)


def fuse(model: nn.Module, run_model: partial[Tensor], expected: Tensor, *, parts_last: bool = False) -> str:
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    return fuse_linears(model, linears, run_model, expected, parts_last=parts_last)


def count_bytes(model: nn.Module) -> int:
    """The memory of the parameters, each storage once."""
    storages = [parameter.untyped_storage() for parameter in model.parameters()]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize(
    ("family", "saved"),
    [
        pytest.param("bert", 2, id="queries, keys and values"),
        pytest.param("roberta", 2, id="RoBERTa"),
        pytest.param("distilbert", 2, id="DistilBERT"),
        pytest.param("albert", 2, id="layers that are one module"),
        pytest.param("deberta-v2", 4, id="those of positions are computed once"),
        pytest.param("modernbert", 0, id="one layer already"),
    ],
)
def test_a_model_has_one_product_for_each_input(
    family: str, saved: int, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fuse_instead(model: nn.Module, run_model: partial[Tensor], expected: Tensor, *, parts_last: bool) -> str:
        return fuse(model, run_model, expected)

    monkeypatch.setattr(forward_selection, "pack_linears", fuse_instead)
    case = ForwardCase(model_folder(family, "token_classification"), "token_classification")
    texts = case.texts([5, 30, 12], seed=3)
    with DispatchedCalls() as stock:
        case.expected(texts[0])
    with DispatchedCalls() as fused:
        run(case.forward, texts[:1])
    assert count_products(stock) - count_products(fused) == saved * case.model.config.num_hidden_layers
    for found, text in zip(run(case.forward, texts), texts, strict=True):
        torch.testing.assert_close(found, case.expected(text), atol=2e-5, rtol=1e-4)
    assert count_bytes(case.model) == count_bytes(case.reference)
    for (name, weight), expected in zip(case.model.named_parameters(), case.reference.parameters(), strict=True):
        assert torch.equal(weight, expected), name


class Attention(nn.Module):
    """Queries, keys and values of one input."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, width) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        query, key, value = self.query(rows), self.key(rows), self.value(rows)
        result: Tensor = torch.softmax(query @ key.mT, -1) @ value
        return result


class Flattens(Attention):
    """Its code needs the output of a layer in memory of its own."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.stack([layer(rows).view(-1) for layer in (self.query, self.key, self.value)])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(Flattens(), "stock linear layers: Flattens does not run with fused ones (view size", id="views"),
        pytest.param(Attention(VOCABULARY), "stock linear layers: no two", id="vocabularies stay alone"),
        pytest.param(Attention(), "3 linear layers are fused to 1, one for each input", id="fused"),
    ],
)
@torch.inference_mode()
def test_the_log_says_what_was_fused(model: nn.Module, expected: str) -> None:
    rows = torch.randn(4, WIDTH)
    scores = model(rows)
    said = fuse(model, partial(model, rows), scores)
    assert said.startswith(expected)
    assert any(isinstance(module, FusedLinear) for module in model.modules()) == (not said.startswith("stock"))
    torch.testing.assert_close(model(rows), scores)


def test_layers_that_are_not_on_a_cpu_are_fused() -> None:
    scores = torch.ones(3)
    with torch.device("meta"):
        model, rows = Attention(), torch.empty(4, WIDTH)

    def run_model() -> Tensor:
        model(rows)
        return scores

    assert pack_linears(model, run_model, scores).startswith("3 linear layers are fused to 1")
    assert [type(module) for module in model.children()] == [FusedLinear] * 3


@torch.inference_mode()
def test_layers_stay_alone_where_the_scores_differ() -> None:
    model, rows = Attention(), torch.randn(4, WIDTH)
    said = fuse(model, partial(model, rows), model(rows) + 1)
    assert "Attention does not run with fused ones (its scores differ by" in said
    assert [type(module) for module in model.children()] == [nn.Linear] * 3


@torch.inference_mode()
def test_groups_that_have_no_memory_stay_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = nn.Sequential(Attention(), Attention()), torch.randn(4, WIDTH)
    expected, cat, calls = model(rows), torch.cat, 0

    def fail(tensors: list[Tensor]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cat(tensors)

    monkeypatch.setattr(torch, "cat", fail)
    said = fuse(model, partial(model, rows), expected)
    assert said.startswith("3 linear layers are fused to 1, one for each input; no others, since there is no memory")
    assert [type(layer) for layer in model[1].children()] == [nn.Linear] * 3
    torch.testing.assert_close(model(rows), expected)


@torch.inference_mode()
def test_a_compiled_model_has_one_product() -> None:
    model = nn.Sequential(Attention(), Attention())
    rows = torch.randn(4, WIDTH)
    fuse(model, partial(model, rows), model(rows))
    graphs: list[list[str]] = []

    def compile_nothing(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=compile_nothing, fullgraph=True, dynamic=True)
    for count in (4, 7, 4, 11):
        rows = torch.randn(count, WIDTH)
        torch.testing.assert_close(compiled(rows), model(rows))
    assert [sum("linear" in target for target in graph) for graph in graphs] == [2], "one graph, a product a layer"
