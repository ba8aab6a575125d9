"""Layers compiled by `torch.compile`, as on a GPU: on a CPU the same code runs, with another backend."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.fx import GraphModule
from transformers import AttentionInterface

from runners.core.errors import ArgumentsError
from runners.encoder import compiled_layers, forward_selection
from runners.encoder.compiled_layers import compile_layers
from runners.encoder.packed_attention import PACKED_ATTENTION, packed_attention
from runners.encoder.packing import PackedForward
from runners.encoder.probe import Probe
from runners.modeling.fused_linear import fuse_linears
from tests.conftest import ModelFolder
from tests.encoders import load
from tests.forwards import ForwardCase, run

TASK = "token_classification"
LENGTHS = ([9], [5, 130, 12], [1], [40, 40], [7] * 30, [13, 2, 100])
# The compiler's first part, without C++ or Triton.
FAST = "aot_eager"


@pytest.fixture(autouse=True)
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Linear layers as on a GPU, and nothing left of earlier compilations."""
    monkeypatch.setattr(compiled_layers, "_BACKEND", FAST)
    monkeypatch.setattr(forward_selection, "pack_linears", _fuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)


def _fuse(model: torch.nn.Module, scores: Callable[[], Tensor], expected: Tensor, *, parts_last: bool) -> str:
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    return fuse_linears(model, linears, scores, expected)


def make_case(folder: Path) -> ForwardCase:
    """A case whose last layer computes all rows, as on a GPU."""
    case = ForwardCase(folder, TASK)
    assert type(case.forward) is PackedForward
    return case


def probe_stock(case: ForwardCase) -> Probe:
    case.forward.detach()
    probe = case.probe()
    case.forward.attach()
    return probe


def count_graphs() -> int:
    return counters["stats"]["unique_graphs"]


def check_batches(case: ForwardCase) -> None:
    for seed, lengths in enumerate(LENGTHS):
        texts = case.texts(lengths, seed)
        for text, rows in zip(texts, run(case.forward, texts), strict=True):
            torch.testing.assert_close(rows, case.expected(text), atol=5e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "deberta-v2"])
def test_no_batch_is_compiled_after_the_load(family: str, model_folder: ModelFolder) -> None:
    case = make_case(model_folder(family, TASK))
    is_compiled, said = compile_layers(probe_stock(case), case.forward)
    assert is_compiled, said
    assert said.startswith(f"{case.model.config.num_hidden_layers} layers are compiled"), said
    graphs = count_graphs()
    assert 0 < graphs <= 8
    check_batches(case)
    assert count_graphs() == graphs


@pytest.mark.slow
def test_the_default_compiler_gives_the_same(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_layers, "_BACKEND", "inductor")
    case = make_case(model_folder("bert", TASK))
    is_compiled, said = compile_layers(probe_stock(case), case.forward)
    assert is_compiled, said
    assert said.startswith("2 layers are compiled"), said
    graphs = count_graphs()
    check_batches(case)
    assert count_graphs() == graphs
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == Path(os.environ["XDG_CACHE_HOME"]) / "huggingface-runtime" / "inductor"
    assert any(folder.iterdir())


def test_what_was_not_compiled_at_load_runs_uncompiled(model_folder: ModelFolder) -> None:
    case = make_case(model_folder("bert", TASK))
    with compiled_layers.compiled_layers(probe_stock(case), case.forward):
        pass
    graphs = count_graphs()
    [text] = case.texts([20], seed=0)
    # Gradients would need other code.
    with torch.enable_grad():
        rows, _ = case.forward.run([text])
    torch.testing.assert_close(rows.detach(), case.expected(text), atol=5e-5, rtol=0)
    assert count_graphs() == graphs > 0


def _fail(*_: Any) -> Any:
    raise RuntimeError("no compiler")


def _add_one(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    return lambda *inputs: [each + 1 if isinstance(each, Tensor) else each for each in graph(*inputs)]


def _mix_rows(graph: GraphModule, _: list[Tensor]) -> Callable[..., Any]:
    """Texts influence each other by less than the tolerance."""

    def compute(*inputs: Any) -> Any:
        return [
            each + 1e-6 * each.mean() if isinstance(each, Tensor) and each.is_floating_point() else each
            for each in graph(*inputs)
        ]

    return compute


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        pytest.param(_fail, "no compiler", id="it fails"),
        pytest.param(_add_one, "its scores differ by", id="other scores"),
        pytest.param(_mix_rows, "the answer to a text depends on the others of its batch", id="texts are mixed"),
    ],
)
def test_layers_stay_uncompiled_with_a_reason(
    backend: object,
    why: str,
    model_folder: ModelFolder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(compiled_layers, "_BACKEND", backend)
    case = make_case(model_folder("bert", TASK))
    with compiled_layers.compiled_layers(probe_stock(case), case.forward):
        pass
    [record] = [record for record in caplog.records if "layers are not compiled" in record.message]
    assert record.levelname == "WARNING"
    assert why in record.message
    assert "\n" not in record.message
    graphs = count_graphs()
    check_batches(case)
    assert count_graphs() == graphs


def test_padded_models_are_not_compiled(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("deberta-v2", TASK, conv_kernel_size=3), TASK)
    is_compiled, said = compile_layers(probe_stock(case), case.forward)
    assert (is_compiled, said.startswith("layers are not compiled: ")) == (False, True)
    assert count_graphs() == 0


def test_layers_on_a_cpu_are_refused(model_folder: ModelFolder) -> None:
    with pytest.raises(ArgumentsError, match="compile_layers: only layers on a GPU are compiled"):
        load(model_dir=str(model_folder("bert", TASK)), task=TASK, compile_layers=True)
