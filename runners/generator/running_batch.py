"""Sequences that run together: their rows, a step of all of them, and how rows leave and join."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from torch import Tensor

from runners.generator.decoder import Decoder, Prefill, Rows
from runners.generator.failures import as_failure
from runners.generator.generation_request import Generation, Item
from runners.generator.token_choice import Chooser

Items = Sequence[tuple[Generation, Item]]


class Batch:
    """Rows of sequences, each with the token that its next step begins with.

    Attributes:
        generations: whose the rows are, in the rows' order.
    """

    def __init__(self, decoder: Decoder, vocabulary: int) -> None:
        self.generations: list[Generation] = []
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._rows: Rows | None = None
        self._tokens: list[int] = []
        self._chooser: Chooser | None = None

    def __len__(self) -> int:
        return len(self.generations)

    def begin(self, generations: Sequence[Generation], rows: Rows, logits: Tensor) -> Items:
        """Let sequences whose prompts are computed be all that run.

        Args:
            logits: of their first tokens, [rows, vocabulary].

        Returns:
            What their first tokens are.
        """
        self.generations, self._rows, self._tokens = list(generations), rows, [0] * len(rows)
        return self._choose(logits)

    def step(self) -> Items:
        """Append a token to every row; what the step has made."""
        if self._rows is None:
            return []
        return self._choose(self._decoder.step(self._rows, self._tokens))

    def join(self, other: Batch) -> None:
        """Add the rows of another batch below; only for continuous batches."""
        if other._rows is None:
            return
        if self._rows is None:
            self._rows = other._rows
        else:
            self._rows.join(other._rows)
        self.generations += other.generations
        self._tokens += other._tokens
        self._chooser = None

    def keep(self, stays: Callable[[Generation], bool]) -> None:
        """Let the rows of all other sequences leave."""
        stay = [generation for generation in self.generations if stays(generation)]
        if len(stay) < len(self.generations):
            kept = frozenset(stay)
            rows = [row for row, owner in enumerate(self._row_owners()) if owner in kept]
            self._go_on(stay, rows, [self._tokens[row] for row in rows])

    def split(self, leaving: Set[Generation]) -> Batch:
        """Let these sequences leave for a batch of their own; only for continuous batches."""
        part = Batch(self._decoder, self._vocabulary)
        if self._rows is not None:
            part.generations = [generation for generation in self.generations if generation in leaving]
            rows = [row for row, owner in enumerate(self._row_owners()) if owner in leaving]
            part._rows, part._tokens = self._rows.copy(rows), [self._tokens[row] for row in rows]
            self.keep(lambda generation: generation not in leaving)
        return part

    def find_at(self, length: int) -> list[Generation]:
        """The sequences with a row of that length."""
        if self._rows is None:
            return []
        owners = zip(self._row_owners(), self._rows.lengths, strict=True)
        return list(dict.fromkeys(owner for owner, own in owners if own == length))

    def clear(self) -> list[Generation]:
        """Let all leave; which they were."""
        left, self.generations = self.generations, []
        self._rows, self._tokens, self._chooser = None, [], None
        return left

    def _choose(self, logits: Tensor) -> Items:
        if self._chooser is None:
            self._chooser = Chooser(self.generations, self._vocabulary, self._decoder.model.device)
        step = self._chooser.choose(logits)
        self._go_on([each for each in self.generations if not each.finished], step.sources, step.tokens)
        return step.items

    def _row_owners(self) -> list[Generation]:
        return [generation for generation in self.generations for _ in range(generation.rows)]

    def _go_on(self, generations: list[Generation], sources: list[int], tokens: list[int]) -> None:
        """Let only these of what runs go on; rows as in `Step`."""
        all_stay = len(generations) == len(self.generations)
        if self._rows is None or not generations:
            self.clear()
            return
        self.generations, self._tokens = generations, tokens
        if all_stay and len(sources) == len(self._rows):
            self._rows.follow(sources)
        else:
            self._rows.keep(sources)
        if not all_stay:
            self._chooser = None


def compute(decoder: Decoder, generation: Generation, budget: int) -> tuple[Rows, Tensor]:
    """The rows of a sequence alone, from its prompt to what it has generated, and the logits after them.

    Args:
        budget: tokens of the prompt that are computed at once.
    """
    is_scored = generation.is_scored
    if is_scored and generation.prompt_scores is not None:
        generation.prompt_scores.ranked.clear()
    prefill = decoder.start([generation.request.prompt] if decoder.has_encoder else generation.sequences, is_scored)
    logits: Tensor | None = None
    while logits is None:
        logits = decoder.advance(prefill, budget)
        if is_scored:
            score_prompts([generation], prefill)
    outputs = generation.outputs
    if decoder.has_encoder and outputs[0]:
        # What a decoder has written cannot be computed at once: its first step begins with the encoder's output.
        if len(outputs) > 1:
            prefill.rows.keep([0] * len(outputs))
        for tokens in zip(*outputs, strict=True):
            logits = decoder.step(prefill.rows, tokens)
    return prefill.rows, logits


def score_prompts(generations: Sequence[Generation], prefill: Prefill) -> None:
    """Tell the log probabilities of the tokens after the columns that have just been computed."""
    assert prefill.logits is not None
    width = prefill.ids.shape[1]
    start = prefill.done - prefill.logits.shape[1]
    for row, generation in enumerate(generations):
        first = max(start, width - len(generation.request.prompt))
        last = min(prefill.done, width - 1)
        if first < last and generation.prompt_scores is not None and generation.sampled.error is None:
            try:
                logits = prefill.logits[row, first - start : last - start]
                generation.prompt_scores.add(logits, prefill.ids[row, first + 1 : last + 1])
            except Exception as error:
                generation.sampled.error = as_failure(error)
    prefill.logits = None
