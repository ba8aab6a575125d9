"""Captured graphs beside the forward pass that was captured."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from runners.encoder.graphs import Capturer, GraphCapturer, GraphedForward, capture_graphs
from runners.encoder.packing import PackedForward, Shape
from runners.encoder.sequences import TokenizedText
from runners.encoder.transfers import DeviceArrays
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.gpu.conftest import Record
from tests.gpu.families import DTYPES, Sizes, make_case
from tests.model_cases import run

_BATCHES = {"cuda": 60, "cpu": 4}
_MOST_ROWS = {"cuda": 16_384, "cpu": 256}
_MOST_TEXTS = 256


class Repeater:
    """Computes again what it was given, where there are no graphs."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = compute().clone()
        return lambda: output.copy_(compute()), output  # type: ignore[return-value]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "task"), [
    ("bert", "sequence_classification"), ("distilbert", "fill_mask"), ("roberta", "text_embedding"),
    ("modernbert", "token_classification"), ("qwen3", "text_embedding"),
])  # fmt: skip
def test_a_replay_equals_the_eager_forward_pass(
    family: str, task: str, dtype: str, device: torch.device, record: Record
) -> None:
    """In the shape of its graph, bit for bit; a batch alone has other shapes, and so other kernels."""
    case = make_case(family, task, dtype, device)
    assert isinstance(case.forward, PackedForward), case.reason
    capturer: Capturer = GraphCapturer(device) if device.type == "cuda" else Repeater()
    longest, most = Sizes.of(device).longest, _MOST_ROWS[device.type]
    graphed, said = capture_graphs(case.forward, case.probe_used, capturer, most, _MOST_TEXTS, longest)
    if dtype == "float32" and family == "modernbert":
        # Its windows have other kernels for each batch.
        assert graphed is case.forward, said
        pytest.skip(said)
    assert isinstance(graphed, GraphedForward), said
    random = np.random.default_rng(0)
    worst = 0.0
    for seed in range(_BATCHES[device.type]):
        room, lengths = int(random.integers(1, most)), list[int]()
        while room > 0 and len(lengths) < _MOST_TEXTS:
            lengths.append(min(room, int(random.integers(1, longest))))
            room -= lengths[-1]
        texts = case.texts(lengths, seed)
        replayed = run(graphed, texts)
        assert all(map(torch.equal, run(graphed, texts), replayed))
        eager = run(case.forward, texts)
        worst = max(worst, measure_difference(torch.cat(replayed), torch.cat(eager)))
        shape = graphed._find_shape(texts)
        if shape is not None:
            assert all(map(torch.equal, _run_in_shape(case.forward, texts, shape, device), replayed))
    record("difference of graphs", worst, "relative", family=family, task=task, dtype=dtype, graphs=graphed.count)
    assert worst <= TOLERANCES[getattr(torch, dtype)]
    graphed.detach()


@torch.inference_mode()
def _run_in_shape(
    forward: PackedForward, texts: list[TokenizedText], shape: Shape, device: torch.device
) -> list[Tensor]:
    batch = forward.lay_out(texts, shape)
    rows = forward.compute(batch, DeviceArrays(batch.arrays, device).tensors, is_fixed=True)
    return list(torch.split(rows[: sum(batch.counts)].cpu(), batch.counts))
