"""What the benchmarks send: texts of realistic lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from benchmarks.closed_loop import Load, closed_loop
from benchmarks.gpu.engine import Engine
from runners.encoder.sequences import TokenizedText

# Of the logarithm of a text's tokens: the median is 32 tokens, the mean 42, and a text in 40 has more than 160.
_MEDIAN, _SPREAD = 32, 0.8
_SHORTEST, _LONGEST = 4, 256
LENGTHS = "log-normal, median 32, 4 to 256 tokens"


def draw_lengths(count: int, seed: int = 0) -> list[int]:
    """Lengths of texts in tokens. Lengths of sentences and messages are close to log-normal."""
    lengths = np.random.default_rng(seed).lognormal(np.log(_MEDIAN), _SPREAD, count)
    return [int(length) for length in lengths.clip(_SHORTEST, _LONGEST)]


def drive(
    engine: Engine, texts: Sequence[TokenizedText], callers: int, seconds: float, texts_a_request: int = 1
) -> Load:
    """Load an engine, going through the texts again and again."""
    groups = [texts[start : start + texts_a_request] for start in range(0, len(texts), texts_a_request)]

    async def ask(turn: int) -> bool:
        group = groups[turn % len(groups)]
        return len(await engine.infer(group)) == len(group)

    return asyncio.run(closed_loop(ask, callers, texts_a_request, seconds))
