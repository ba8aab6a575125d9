"""Servers that benchmarks start."""

from __future__ import annotations

import httpx

from benchmarks.run import instant_words, serve


def test_a_model_that_answers_at_once() -> None:
    with serve(instant_words()) as url:
        answer = httpx.post(f"{url}/v1/models/model:predict", json={"instances": ["one", "two"]})
    assert answer.json() == {"predictions": [1, 1]}
