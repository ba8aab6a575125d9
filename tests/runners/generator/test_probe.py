"""How a generator is batched, found out at load: what joins, what crosses windows and rotary limits."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from runners.core.errors import ModelLoadError
from runners.generator import probe
from runners.generator.decoder import Batching, Decoder
from runners.generator.probe import choose_batching
from runners.generator.row_rope import RowRope
from tests.rotary_models import DYNAMIC, LONGROPE, make_model, make_phi


def make_mistral(window: int | None, **config: Any) -> PreTrainedModel:
    sizes = {"sliding_window": window, "num_hidden_layers": 2, "initializer_range": 0.5}
    return make_model("mistral", {"rope_type": "default"}, **sizes | config)


@pytest.mark.parametrize(
    ("make", "batching", "notes"),
    [
        (lambda: make_model("llama", LONGROPE), Batching.CONTINUOUS, ""),
        (lambda: make_model("llama", DYNAMIC), Batching.CONTINUOUS, ""),
        (make_phi, Batching.CONTINUOUS, ""),
        (lambda: make_mistral(8), Batching.CONTINUOUS, ""),
        # As windows of 8 tokens only.
        (lambda: make_mistral(4096), Batching.CONTINUOUS, "texts of more than 4096 tokens were not tried"),
    ],
    ids=["longrope", "dynamic", "phi3", "a window", "a long window"],
)
def test_rows_join(make: Any, batching: Batching, notes: str) -> None:
    decoder = Decoder(make(), None)
    line = choose_batching(decoder)
    assert decoder.batching is batching
    assert line.startswith("continuous batches: ")
    assert line.endswith(notes)


@pytest.mark.parametrize("rope", [LONGROPE, DYNAMIC], ids=["longrope", "dynamic"])
def test_positions_by_the_longest_row_are_noticed(rope: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowRope, "at", lambda *_: contextlib.nullcontext())
    decoder = Decoder(make_model("llama", rope, initializer_range=0.5), None)
    line = choose_batching(decoder)
    assert decoder.batching is Batching.ALONE
    assert "not continuous batches: its logits differ by" in line
    assert "not batches that start together: its logits differ by" in line


def test_a_window_that_is_lost_is_noticed_however_long_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mistral(4096)
    step = Decoder.step

    def step_without_window(self: Decoder, rows: Any, tokens: Sequence[int]) -> Any:
        window, model.config.sliding_window = model.config.sliding_window, None
        try:
            return step(self, rows, tokens)
        finally:
            model.config.sliding_window = window

    monkeypatch.setattr(Decoder, "step", step_without_window)
    decoder = Decoder(model, None)
    line = choose_batching(decoder)
    # The stock cache itself drops what is beyond the window.
    assert decoder.batching is Batching.TOGETHER
    assert "where windows and rotary limits are 8 tokens" in line
    assert model.config.sliding_window == 4096


def test_a_window_is_crossed_as_it_is_where_that_takes_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    start = Decoder.start

    def noted_start(self: Decoder, prompts: Sequence[Sequence[int]]) -> Any:
        lengths.extend(map(len, prompts))
        return start(self, prompts)

    monkeypatch.setattr(Decoder, "start", noted_start)
    choose_batching(Decoder(make_mistral(100), None))
    assert max(lengths) == 124
    lengths.clear()
    monkeypatch.setitem(probe._AFFORDABLE, "cpu", 1)
    assert "more than 100 tokens were not tried" in choose_batching(Decoder(make_mistral(100), None))
    assert max(lengths) == 23


def test_a_model_with_another_kind_of_cache_runs_alone() -> None:
    torch.manual_seed(0)
    auto_class: Any = AutoModelForCausalLM
    config = AutoConfig.for_model("mamba", vocab_size=300, hidden_size=32, num_hidden_layers=2, initializer_range=0.5)
    model = auto_class.from_config(config)
    model.train(False)
    decoder = Decoder(model, None)
    choose_batching(decoder)
    assert decoder.batching is Batching.ALONE


def test_what_generate_does_not_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_mistral(8)

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("it wants images")

    monkeypatch.setattr(model, "generate", refuse)
    with pytest.raises(ModelLoadError, match="MistralForCausalLM cannot be generated with: it wants images"):
        choose_batching(Decoder(model, None))
