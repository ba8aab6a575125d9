"""The next tokens of all rows of a batch: plain rows are sampled together, each request's beams search on their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runners.generator.beams import Beams
from runners.generator.request import Generation, Item
from runners.generator.sampling import Ranked, Sampler


@dataclass(slots=True)
class Step:
    """What a step has made.

    Attributes:
        items: for each generation what there is for its caller: a delta, all that its beams have found, or why it ends.
        sources: for each row of the next step, the row of this one that it continues.
        tokens: for each row of the next step, the token that it is given.
    """

    items: list[tuple[Generation, Item]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class Chooser:
    """The rows of generations, in their order; made anew when one leaves or joins."""

    def __init__(self, generations: Sequence[Generation], vocabulary: int, device: torch.device) -> None:
        self._generations = generations
        plain = [generation for generation in generations if generation.beams is None]
        self._sampler = Sampler([generation.sampled for generation in plain], vocabulary, device) if plain else None
        self._has_beams = len(plain) < len(generations)

    def choose(self, logits: Tensor) -> Step:
        """Choose for every row; [rows, vocabulary]."""
        plain = iter(self._sample(logits))
        step = Step()
        row = 0
        for generation in self._generations:
            if generation.beams is None:
                token, ranked = next(plain)
                step.items.append((generation, self._take(generation, token, ranked)))
                if not generation.finished:
                    step.sources.append(row)
                    step.tokens.append(token)
                row += 1
            else:
                rows = len(generation.beams)
                self._search(generation, generation.beams, logits[row : row + rows], row, step)
                row += rows
        return step

    def _sample(self, logits: Tensor) -> list[tuple[int, Ranked | None]]:
        """The tokens of the plain rows, and log probabilities where asked for."""
        if self._sampler is None:
            return []
        if self._has_beams:
            counts = [1 if generation.beams is None else len(generation.beams) for generation in self._generations]
            starts = [sum(counts[:index]) for index in range(len(counts))]
            logits = logits[
                [start for start, generation in zip(starts, self._generations, strict=True) if generation.beams is None]
            ]
        tokens, ranked = self._sampler.choose(logits)
        return [(token, ranked.get(row)) for row, token in enumerate(tokens)]

    def _take(self, generation: Generation, token: int, ranked: Ranked | None) -> Item:
        """What a token adds; a fault, as of a tokenizer that is written in Python, is of its request alone."""
        try:
            return generation.take(token, ranked)
        except Exception as error:
            generation.finished = True
            return error

    def _search(self, generation: Generation, beams: Beams, logits: Tensor, first: int, step: Step) -> None:
        try:
            rows, tokens = beams.advance(logits)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            # A fault of one request, as in a processor of its own.
            generation.finished = True
            step.items.append((generation, error))
            return
        if beams.over:
            generation.finished = True
            step.items.append((generation, beams.best or ValueError("no token has a probability")))
        step.sources += [first + row for row in rows]
        step.tokens += tokens
