"""Selects the next tokens of all rows of a batch: sampled rows together, the beams of each request on their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from runners.core.errors import InputError
from runners.generator.beams import Beams
from runners.generator.logprobs import Ranked
from runners.generator.sampler import SampledRow, Sampler
from runners.generator.sequence_errors import as_runner_error
from runners.generator.sequence_state import Generation, Item
from runners.modeling.device_failures import examine_failure

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """The result of a step.

    Attributes:
        items: for each sequence the item for its caller: a delta, the result of its beam search, or its error.
        sources: for each row of the next step, the row of this step that it continues.
        tokens: for each row of the next step, its input token.
    """

    items: list[tuple[Generation, Item]] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


class TokenSelector:
    """Selects the next tokens of sequences, in the order of their rows; a new one is made when rows leave or join."""

    def __init__(self, generations: Sequence[Generation], vocabulary: int, device: torch.device) -> None:
        self._generations = generations
        sampled = [generation.sampled for generation in generations if generation.beams is None]
        self._sampler = FaultTolerantSampler(sampled, vocabulary, device) if sampled else None
        self._has_beams = len(sampled) < len(generations)

    def select(self, logits: Tensor) -> Step:
        """Select a token for every row; [rows, vocabulary]."""
        sampled = iter(self._sample(logits))
        step = Step()
        row = 0
        for generation in self._generations:
            if generation.beams is None:
                token, ranked = next(sampled)
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
        """The tokens of the sampled rows, and their log probabilities where requested."""
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
        """The delta of a token; an error, for example of a tokenizer in Python, ends this sequence only."""
        try:
            return generation.take(token, ranked)
        except Exception as error:
            generation.finished = True
            return as_runner_error(error)

    def _search(self, generation: Generation, beams: Beams, logits: Tensor, first: int, step: Step) -> None:
        try:
            rows, tokens = beams.advance(logits)
        except Exception as error:
            # An error of this request only, for example in one of its processors.
            examine_failure(error, logits.device)
            generation.finished = True
            step.items.append((generation, as_runner_error(error)))
            return
        if beams.over:
            generation.finished = True
            step.items.append((generation, beams.best or InputError("no token has a probability")))
        step.sources += [first + row for row in rows]
        step.tokens += tokens


class FaultTolerantSampler:
    """Samples all rows together. If that fails, samples each row alone, and marks those that fail again."""

    def __init__(self, rows: Sequence[SampledRow], vocabulary: int, device: torch.device) -> None:
        self._rows = rows
        self._vocabulary = vocabulary
        self._device = device
        self._together: Sampler | None = None

    def choose(self, logits: Tensor) -> tuple[list[int], dict[int, Ranked]]:
        """As `Sampler.choose`; the token of a row with an error is meaningless."""
        try:
            if self._together is None:
                self._together = Sampler(self._rows, self._vocabulary, self._device)
            return self._together.choose(logits)
        except Exception as error:
            examine_failure(error, self._device)
            logger.warning("sampling of %d rows has failed (%s): each is alone", len(self._rows), type(error).__name__)
        # The rows keep their counts, which are views of this sampler's tensors.
        self._together = None
        tokens: list[int] = []
        ranked: dict[int, Ranked] = {}
        for index, row in enumerate(self._rows):
            token, ranking = self._choose_alone(row, logits[index : index + 1])
            tokens.append(token)
            if ranking is not None:
                ranked[index] = ranking
        return tokens, ranked

    def _choose_alone(self, row: SampledRow, logits: Tensor) -> tuple[int, Ranked | None]:
        if row.error is None:
            try:
                [token], ranked = Sampler([row], self._vocabulary, self._device).choose(logits)
            except Exception as error:
                examine_failure(error, self._device)
                row.error = as_runner_error(error)
            else:
                return token, ranked.get(0)
        return 0, None
