"""What the benchmark of a GPU measures."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from benchmarks.gpu import parts
from benchmarks.gpu.figures import Figures


class FoundError(Exception):
    """Ends a part of the benchmark with what was found."""


@pytest.mark.parametrize("part", [parts.measure_limit, parts.measure_precisions, parts.measure_embeddings])
def test_models_can_be_converted(part: Callable[[parts.Setting], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of inference mode are not probed in float32, so that in 16 bits no batch would be found right."""

    def make_engine(model: PreTrainedModel, *_: object) -> None:
        raise FoundError(any(weight.is_inference() for weight in model.parameters()))

    monkeypatch.setattr(parts, "Engine", make_engine)
    device = torch.device("cpu")
    with pytest.raises(FoundError, match="False"):
        part(parts.Setting(device, True, Figures(device)))
