"""vLLM's outputs as deltas; tests/test_hub_generation.py compares real ones with the model."""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("vllm")
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

from runners.core.errors import GenerationFailedError
from runners.core.generation import LEAST_LOGPROB, Sampling
from runners.generator.vllm.deltas import DeltaReader

END = 2


def output(text: str, ids: list[int], logprobs: Any = None, prompt: Any = None, **more: Any) -> RequestOutput:
    generated = CompletionOutput(0, text, ids, None, logprobs, **more)
    return RequestOutput("request", None, [7, 8], prompt, [generated], finished=False)


def test_log_probabilities_of_several_outputs() -> None:
    reader = DeltaReader(Sampling(logprobs=2), {END})
    first = reader.read(
        output("aé", [5, END], [
            {5: Logprob(-1.5, 3, "aé"), 6: Logprob(-0.5, 1, "b"), 4: Logprob(-1.0, 2, "c")},
            {END: Logprob(-0.1, 1, "</s>"), 6: Logprob(-math.inf, 2, "b")},
        ])
    )  # fmt: skip
    chosen, end = first.logprobs
    assert (chosen.chosen.token_id, chosen.chosen.logprob, chosen.chosen.rank, chosen.chosen.data) == (
        5,
        -1.5,
        3,
        "aé".encode(),
    )
    assert [top.token_id for top in chosen.top] == [6, 4]
    assert [top.logprob for top in end.top] == [-0.1, LEAST_LOGPROB]
    assert (chosen.chosen.special, end.chosen.special) == (False, True)
    last = reader.read(output("b", [6], [{6: Logprob(-0.5, 1, "b")}], finish_reason="stop", stop_reason="b"))
    # The text has no end token.
    assert [entry.offset for entry in (*first.logprobs, *last.logprobs)] == [0, 2, 2]
    assert (last.finish_reason, last.stop_reason, first.finish_reason) == ("stop", "b", None)


def test_the_first_token_of_a_prompt_has_none() -> None:
    delta = DeltaReader(Sampling(prompt_logprobs=0), ()).read(
        output("a", [5], None, [None, {8: Logprob(-2.0, 4, "h")}])
    )
    assert delta.logprobs == ()
    assert delta.prompt_logprobs is not None
    first, second = delta.prompt_logprobs
    assert first is None
    assert second is not None
    assert (second.chosen.logprob, second.top) == (-2.0, ())


def test_an_output_that_has_failed() -> None:
    with pytest.raises(GenerationFailedError):
        DeltaReader(Sampling(), ()).read(output("", [], finish_reason="error"))
