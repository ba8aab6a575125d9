"""Beam search of one request: which continuations of its beams are kept, and when none can get better.

The search is that of `generate(num_beams=...)`, or vLLM's, which differs in three points (`BeamRules`). The rows of the
batch are the scheduler's; this module sees logits and says which row goes on with which token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from runners.generator.sampler import Ranked

# Changes the log probabilities of beams, float32 [beams, vocabulary], given the ids of their outputs so far.
Adjust = Callable[[Tensor, Sequence[Sequence[int]]], Tensor]
# Tells the log probabilities of a token of each row, [rows, vocabulary].
Rank = Callable[[Tensor, Sequence[int]], list[Ranked]]


@dataclass(frozen=True, slots=True)
class BeamRules:
    """How sequences are found and compared.

    Attributes:
        width: beams that are kept.
        choices: how many sequences are returned, at most `width`.
        length_penalty: a score is a log probability divided by a length to this power.
        early_stopping: whether `width` finished sequences end the search; if not, it ends when the best beam cannot
            become better than the worst of them at its length now (False), or at any length ("never").
        as_vllm: a continuation that ends is a finished sequence whatever its rank, not only among the `width` best
            ones, and a length is that of prompt and output without the token that ends it, not of the output with it.
    """

    width: int
    choices: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    as_vllm: bool = False


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A sequence that has ended.

    Attributes:
        tokens: of the output, with the one that ended it.
        ranked: of each token, where asked for.
    """

    tokens: tuple[int, ...]
    score: float
    ranked: tuple[Ranked, ...]


@dataclass(frozen=True, slots=True)
class _Beam:
    tokens: tuple[int, ...]
    logprob: float
    ranked: tuple[Ranked, ...] = ()
    # The row that it continues.
    parent: int = 0


class Beams:
    """The beams of one request; it has one row of the batch at first, and `width` after the first step."""

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
            prompt_length: of what the output continues: a causal model's prompt, an encoder-decoder's start token.
            ends: tokens that end a sequence.
            adjust: what changes the scores; None for nothing.
            rank: what tells log probabilities; None where nobody asks.
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
        """The rows of the batch that they have."""
        return len(self._beams)

    @property
    def outputs(self) -> list[tuple[int, ...]]:
        """What the beam of each row has generated."""
        return [beam.tokens for beam in self._beams]

    @property
    def best(self) -> list[Hypothesis]:
        """The sequences that are returned, best first, once the search is over; fewer where there are no more."""
        return self._finished[: self._rules.choices]

    def advance(self, logits: Tensor) -> tuple[list[int], list[int]]:
        """Take the next step.

        Args:
            logits: [beams, vocabulary].

        Returns:
            By row: the row that it continues, and its token. Where a row can go on with a beam of its own, it does.
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
        """The best continuations of all beams, best first; enough that `width` of them do not end.

        Returns:
            For each the log probability of the sequence, the row that it continues and the token.
        """
        if self._adjust is not None:
            logprobs = self._adjust(logprobs, [beam.tokens for beam in self._beams])
        count = min(max(2, 1 + len(self._ends)) * self._rules.width, logprobs.shape[1])
        sums = torch.tensor([beam.logprob for beam in self._beams], device=logprobs.device)[:, None]
        values, tokens = logprobs.topk(count)
        found = [
            (logprob, row, token)
            for row, (row_values, row_tokens) in enumerate(zip((values + sums).tolist(), tokens.tolist(), strict=True))
            for logprob, token in zip(row_values, row_tokens, strict=True)
            if logprob > -math.inf
        ]
        found.sort(key=lambda each: each[0], reverse=True)
        return found if self._rules.as_vllm else found[:count]

    def _extend(self, logprobs: Tensor, candidates: list[tuple[float, int, int]]) -> list[tuple[_Beam, bool]]:
        """Those continuations that may be kept, best first, and whether each may be a finished sequence."""
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
            ranked = [(one,) for one in self._rank(logprobs[rows], [token for (_, _, token), _ in kept])]
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
        """Whether the best beam can still become better than a finished sequence."""
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
        """A beam a row, each in the row of the one that it continues, where that is free.

        Where there are too few, the others are copies without probability.
        """
        rows: list[_Beam | None] = [None] * self._rules.width
        moved = []
        for beam in alive:
            if rows[beam.parent] is None:
                rows[beam.parent] = beam
            else:
                moved.append(beam)
        filler = replace(alive[0], logprob=-math.inf)
        rest = iter(moved)
        return [beam if beam is not None else next(rest, filler) for beam in rows]
