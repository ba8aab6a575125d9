"""A batch of sequences that run together: steps of all rows, and rows that leave and join."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from runners.generator.decoder import Decoder, Prefill, Rows
from runners.generator.sequence_errors import as_runner_error
from runners.generator.sequence_state import Generation, Item
from runners.generator.token_selection import TokenSelector
from runners.modeling.device_failures import examine_failure

Items = Sequence[tuple[Generation, Item]]


@dataclass(slots=True)
class PromptGroup:
    """Sequences whose prompts are computed together.

    Attributes:
        prefill: None until the first part of the prompts is computed.
    """

    generations: list[Generation]
    prefill: Prefill | None = None

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether log probabilities of the prompts are computed."""
        return self.generations[0].needs_prompt_scores


class Batch:
    """Rows of sequences, each with the token that is the input of its next step.

    Attributes:
        generations: the sequences, in the order of their rows.
    """

    def __init__(self, decoder: Decoder, vocabulary: int) -> None:
        self.generations: list[Generation] = []
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._rows: Rows | None = None
        self._tokens: list[int] = []
        self._selector: TokenSelector | None = None

    def __len__(self) -> int:
        return len(self.generations)

    @property
    def rows(self) -> int:
        """Number of rows of the next step."""
        return len(self._tokens)

    def begin(self, generations: Sequence[Generation], rows: Rows, logits: Tensor) -> Items:
        """Fill the batch with sequences whose prompts have been computed.

        Args:
            logits: of the first tokens, [rows, vocabulary].

        Returns:
            The first deltas.
        """
        self.generations, self._rows, self._tokens = list(generations), rows, [0] * len(rows)
        return self._select(logits)

    def step(self) -> Items:
        """Append a token to every row; the deltas of the step."""
        if self._rows is None:
            return []
        return self._select(self._decoder.step(self._rows, self._tokens))

    def join(self, other: Batch) -> None:
        """Append the rows of another batch; only for continuous batches."""
        if other._rows is None:
            return
        if self._rows is None:
            self._rows = other._rows
        else:
            self._rows.join(other._rows)
        self.generations += other.generations
        self._tokens += other._tokens
        self._selector = None

    def keep(self, stays: Callable[[Generation], bool]) -> None:
        """Remove the rows of all sequences for which `stays` is false."""
        staying = [generation for generation in self.generations if stays(generation)]
        if len(staying) < len(self.generations):
            kept = frozenset(staying)
            rows = [row for row, sequence in enumerate(self._row_sequences()) if sequence in kept]
            self._continue(staying, rows, [self._tokens[row] for row in rows])

    def split(self, leaving: Set[Generation]) -> Batch:
        """Move sequences to a new batch; only for continuous batches."""
        part = Batch(self._decoder, self._vocabulary)
        if self._rows is not None:
            part.generations = [generation for generation in self.generations if generation in leaving]
            rows = [row for row, sequence in enumerate(self._row_sequences()) if sequence in leaving]
            part._rows, part._tokens = self._rows.copy(rows), [self._tokens[row] for row in rows]
            self.keep(lambda generation: generation not in leaving)
        return part

    def find_at(self, length: int) -> list[Generation]:
        """The sequences with a row of this length."""
        if self._rows is None:
            return []
        rows = zip(self._row_sequences(), self._rows.lengths, strict=True)
        return list(dict.fromkeys(sequence for sequence, row_length in rows if row_length == length))

    def clear(self) -> list[Generation]:
        """Remove all rows; returns their sequences."""
        removed, self.generations = self.generations, []
        self._rows, self._tokens, self._selector = None, [], None
        return removed

    def _select(self, logits: Tensor) -> Items:
        if self._selector is None:
            self._selector = TokenSelector(self.generations, self._vocabulary, self._decoder.model.device)
        step = self._selector.select(logits)
        unfinished = [generation for generation in self.generations if not generation.finished]
        self._continue(unfinished, step.sources, step.tokens)
        return step.items

    def _row_sequences(self) -> list[Generation]:
        return [generation for generation in self.generations for _ in range(generation.rows)]

    def _continue(self, generations: list[Generation], sources: list[int], tokens: list[int]) -> None:
        """Continue with these sequences only.

        Args:
            sources, tokens: the rows of the next step, as in `Step`.
        """
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
            self._selector = None


def compute(decoder: Decoder, generation: Generation, budget: int) -> tuple[Rows, Tensor]:
    """Compute one sequence from its prompt to the tokens that it has generated.

    Args:
        budget: number of tokens of the prompt that are computed at once.

    Returns:
        Its rows, and the logits of the next tokens, [rows, vocabulary].
    """
    needs_prompt_scores = generation.needs_prompt_scores
    if needs_prompt_scores and generation.prompt_scores is not None:
        generation.prompt_scores.ranked.clear()
    prefill = decoder.start(
        [generation.request.prompt] if decoder.has_encoder else generation.sequences, needs_prompt_scores
    )
    logits: Tensor | None = None
    while logits is None:
        logits = decoder.advance(prefill, budget)
        if needs_prompt_scores:
            score_prompts([generation], prefill)
    outputs = generation.outputs
    if decoder.has_encoder and outputs[0]:
        # The decoder's tokens are computed one by one: the first step of a decoder computes the encoder's output.
        if len(outputs) > 1:
            prefill.rows.keep([0] * len(outputs))
        for tokens in zip(*outputs, strict=True):
            logits = decoder.step(prefill.rows, tokens)
    return prefill.rows, logits


def score_prompts(generations: Sequence[Generation], prefill: Prefill) -> None:
    """Add the log probabilities of the prompt tokens after the columns that have just been computed."""
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
                examine_failure(error, prefill.logits.device)
                generation.sampled.error = as_runner_error(error)
    prefill.logits = None
