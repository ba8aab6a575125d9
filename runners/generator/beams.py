"""Beam search for one request: which continuations of its beams are kept, and when the search ends.

The search is that of `generate(num_beams=...)`, or vLLM's, which differs in three points (`BeamRules`). The scheduler
owns the rows of the batch; this module selects, from logits, the row and the token that each beam continues with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from runners.generator.logprobs import Ranked

# Takes the log probabilities of beams, float32 [beams, vocabulary], and the ids of their outputs; returns new ones.
Adjust = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
# Takes log probabilities, [rows, vocabulary], and a token for each row; returns the ranks of these tokens.
Rank = Callable[[Tensor, Sequence[int]], list[Ranked]]


@dataclass(frozen=True, slots=True)
class BeamRules:
    """The rules by which sequences are found and compared.

    Attributes:
        width: number of beams.
        choices: number of sequences that are returned, at most `width`.
        length_penalty: a score is a log probability divided by a length to this power.
        early_stopping: True ends the search with `width` finished sequences. Otherwise the search ends when the best
            beam cannot become better than the worst of them, at its current length (False) or at any length ("never").
        as_vllm: continuations of any rank can finish a sequence, not only the `width` best ones; and a length is that
            of prompt and output without the end token, instead of that of the output with it.
    """

    width: int
    choices: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    as_vllm: bool = False


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A finished sequence.

    Attributes:
        tokens: the output, with its end token.
        ranked: the log probability and rank of each token; empty unless requested.
    """

    tokens: tuple[int, ...]
    score: float
    ranked: tuple[Ranked, ...]


@dataclass(frozen=True, slots=True)
class _Beam:
    tokens: tuple[int, ...]
    logprob: float
    ranked: tuple[Ranked, ...] = ()
    # The row that the beam continues.
    parent: int = 0


class Beams:
    """The beams of one request, which have one row of the batch at first, and `width` rows after the first step."""

    def __init__(
        self,
        rules: BeamRules,
        prompt_length: int,
        max_tokens: int,
        ends: Collection[int],
        adjust: Adjust | None,
        rank: Rank | None,
    ) -> None:
        """
        Args:
            prompt_length: tokens before the output: those of a causal model's prompt, or an encoder-decoder's start
                token.
            ends: tokens that end a sequence.
            adjust: changes the scores; None to leave them.
            rank: computes log probabilities for callers; None where they are not requested.
        """
        self._rules = rules
        self._prompt_length = prompt_length
        self._max_tokens = max_tokens
        self._ends = frozenset(ends)
        self._adjust = adjust
        self._rank = rank
        self._beams = [_Beam((), 0.0)]
        self._finished: list[Hypothesis] = []
        self.over = False

    def __len__(self) -> int:
        """Number of rows of the batch."""
        return len(self._beams)

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """The tokens that the beam of each row has generated."""
        return [beam.tokens for beam in self._beams]

    @property
    def best(self) -> list[Hypothesis]:
        """The sequences that are returned once the search is over, best first; there may be fewer than `choices`."""
        return self._finished[: self._rules.choices]

    def advance(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """Take the next step.

        Args:
            logits: [beams, vocabulary].

        Returns:
            For each row of the next step, the row that it continues, and its token. A row continues itself if it can.
        """
        logprobs = logits.float().log_softmax(-1)
        length = len(self._beams[0].tokens) + 1
        is_last = length == self._max_tokens
        alive: list[_Beam] = []
        for beam, counts in self._extend(logprobs, self._find_candidates(logprobs)):
            ends = beam.tokens[-1] in self._ends
            if not ends:
                alive.append(beam)
            if counts and (ends or is_last):
                self._finish(beam, ends)
        self._finished.sort(key=lambda hypothesis: hypothesis.score, reverse=True)
        del self._finished[self._rules.width :]
        self.over = is_last or not alive or not self._can_improve(alive[0].logprob, length)
        if self.over:
            return [], []
        self._beams = self._arrange(alive)
        return [beam.parent for beam in self._beams], [beam.tokens[-1] for beam in self._beams]

    def _find_candidates(self, logprobs: Tensor) -> list[tuple[float, int, int]]:
        """The best continuations of all beams, best first; so many that at least `width` of them do not end.

        Returns:
            For each continuation: the log probability of the sequence, the row that it continues, and the token.
        """
        if self._adjust is not None:
            logprobs = self._adjust(logprobs, [beam.tokens for beam in self._beams])
        count = min(max(2, 1 + len(self._ends)) * self._rules.width, logprobs.shape[1])
        sums = torch.tensor([beam.logprob for beam in self._beams], device=logprobs.device)[:, None]
        values, tokens = logprobs.topk(count)
        candidates = [
            (logprob, row, token)
            for row, (row_values, row_tokens) in enumerate(zip((values + sums).tolist(), tokens.tolist(), strict=True))
            for logprob, token in zip(row_values, row_tokens, strict=True)
            if logprob > -math.inf
        ]
        candidates.sort(key=lambda each: each[0], reverse=True)
        return candidates if self._rules.as_vllm else candidates[:count]

    def _extend(self, logprobs: Tensor, candidates: list[tuple[float, int, int]]) -> list[tuple[_Beam, bool]]:
        """The continuations that may be kept, best first, and whether each may finish a sequence."""
        kept: list[tuple[tuple[float, int, int], bool]] = []
        alive = 0
        for rank, candidate in enumerate(candidates):
            counts = self._rules.as_vllm or rank < self._rules.width
            if candidate[2] in self._ends:
                if counts:
                    kept.append((candidate, True))
            elif alive < self._rules.width:
                alive += 1
                kept.append((candidate, counts))
        ranked: list[tuple[Ranked, ...]] = [()] * len(kept)
        if self._rank is not None and kept:
            rows = torch.tensor([row for (_, row, _), _ in kept], device=logprobs.device)
            ranked = [(token_rank,) for token_rank in self._rank(logprobs[rows], [token for (_, _, token), _ in kept])]
        return [
            (_Beam((*parent.tokens, token), logprob, parent.ranked + new, row), counts)
            for ((logprob, row, token), counts), new in zip(kept, ranked, strict=True)
            for parent in (self._beams[row],)
        ]

    def _finish(self, beam: _Beam, ended: bool) -> None:
        length = len(beam.tokens)
        if self._rules.as_vllm:
            length += self._prompt_length - ended
        self._finished.append(Hypothesis(beam.tokens, beam.logprob / length**self._rules.length_penalty, beam.ranked))

    def _can_improve(self, logprob: float, length: int) -> bool:
        """Whether the best beam can still become better than a finished sequence.

        Args:
            logprob: of the best beam.
            length: its number of tokens.
        """
        rules = self._rules
        if len(self._finished) < rules.width:
            return True
        if rules.early_stopping is True and not rules.as_vllm:
            return False
        if (rules.early_stopping == "never" or rules.as_vllm) and rules.length_penalty > 0:
            length = self._max_tokens
        if rules.as_vllm:
            length += self._prompt_length
        score: float = logprob / length**rules.length_penalty
        return score > self._finished[-1].score

    def _arrange(self, alive: Sequence[_Beam]) -> list[_Beam]:
        """A beam for each row: in the row of the beam that it continues, if that is free.

        If there are too few beams, the other rows get copies with probability zero.
        """
        rows: list[_Beam | None] = [None] * self._rules.width
        displaced = []
        for beam in alive:
            if rows[beam.parent] is None:
                rows[beam.parent] = beam
            else:
                displaced.append(beam)
        filler = replace(alive[0], logprob=-math.inf)
        remaining = iter(displaced)
        return [beam if beam is not None else next(remaining, filler) for beam in rows]
