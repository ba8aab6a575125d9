"""What the benchmarks send: texts of realistic lengths."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.closed_loop import Load, closed_loop
from benchmarks.gpu.engine import Engine
from runners.encoder.sequences import TokenizedText

# Of the logarithm of a text's tokens. Lengths of sentences and messages are close to log-normal.
_SPREAD = 0.8
_SHORTEST = 4


@dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of texts' lengths in tokens, from 4 on."""

    median: int
    longest: int

    def draw(self, count: int, seed: int = 0) -> list[int]:
        """The lengths of so many texts."""
        lengths = np.random.default_rng(seed).lognormal(np.log(self.median), _SPREAD, count)
        return [int(length) for length in lengths.clip(_SHORTEST, self.longest)]

    def __str__(self) -> str:
        return f"log-normal, median {self.median}, {_SHORTEST} to {self.longest} tokens"


# The mean is 43 tokens, and a text in 50 has more than 160.
SHORT = Lengths(32, 256)
# Passages of documents; the mean is 230 tokens.
LONG = Lengths(192, 512)


def drive(
    engine: Engine, texts: Sequence[TokenizedText], callers: int, seconds: float, texts_a_request: int = 1
) -> Load:
    """Load an engine, going through the texts again and again."""
    groups = [texts[start : start + texts_a_request] for start in range(0, len(texts), texts_a_request)]

    async def ask(turn: int) -> bool:
        group = groups[turn % len(groups)]
        return len(await engine.infer(group)) == len(group)

    return asyncio.run(closed_loop(ask, callers, texts_a_request, seconds))
