"""Log probabilities of tokens: computed from logits, and described for callers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from runners.core.generation import LEAST_LOGPROB, TokenLogprob, TokenLogprobs
from runners.generator.detokenizer import Detokenizer
from runners.generator.vocabulary import Vocabulary

_LOGPROBS_AT_A_TIME = 4096


@dataclass(frozen=True, slots=True)
class Ranked:
    """The log probability and the rank of a token.

    Attributes:
        top: the most likely tokens: id, log probability and rank of each.
    """

    logprob: float
    rank: int
    top: tuple[tuple[int, float, int], ...]


def rank(logprobs: Tensor, tokens: Tensor, count: int) -> list[Ranked]:
    """The log probabilities and ranks of tokens, and the most likely tokens.

    A token's rank also counts the other tokens that are as likely, as in vLLM.

    Args:
        logprobs: [rows, vocabulary].
        tokens: [rows].
        count: number of the most likely tokens.
    """
    chosen = logprobs.gather(1, tokens[:, None])
    ranks = (logprobs >= chosen).sum(-1).tolist()
    values, ids = (part.tolist() for part in logprobs.topk(min(count, logprobs.shape[1])))
    return [
        # Tokens without a probability are left out: their order is arbitrary.
        Ranked(
            logprob,
            place,
            tuple(top for top in zip(ids[row], values[row], range(1, count + 1), strict=False) if top[1] > -math.inf),
        )
        for row, (logprob, place) in enumerate(zip(chosen[:, 0].tolist(), ranks, strict=True))
    ]


def count_as_likely(logprobs: Tensor, named: Tensor) -> Tensor:
    """For each named log probability, the number of log probabilities that are at least as high.

    Args:
        logprobs: [vocabulary].
        named: [tokens].

    Returns:
        [tokens].
    """
    edges, order = named.sort()
    # Each token is searched among the few edges, which is faster than a pass over all tokens for each edge.
    reached = torch.bucketize(logprobs, edges, right=True).bincount(minlength=len(named) + 1)
    counts = torch.empty_like(order)
    counts[order] = reached.flip(0).cumsum(0).flip(0)[1:]
    return counts


def describe(vocabulary: Vocabulary, token: int, ranked: Ranked, offset: int) -> TokenLogprobs:
    """A position of a text for callers.

    Args:
        offset: number of characters of the text before the token.
    """
    return TokenLogprobs(
        _entry(vocabulary, token, ranked.logprob, ranked.rank),
        tuple(_entry(vocabulary, *top) for top in ranked.top),
        offset,
    )


def _entry(vocabulary: Vocabulary, token: int, logprob: float, token_rank: int) -> TokenLogprob:
    text, data, value = vocabulary.text(token), vocabulary.data(token), max(logprob, LEAST_LOGPROB)
    return TokenLogprob(token, text, data, value, token_rank, token in vocabulary.special)


@dataclass(slots=True)
class PromptScores:
    """The log probabilities of a prompt's tokens after the first, as far as the prompt has been computed.

    Attributes:
        count: number of the most likely tokens at each position.
    """

    count: int
    ranked: list[Ranked]

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Add the next tokens of the prompt.

        Args:
            logits: before each token, [tokens, vocabulary].
            tokens: [tokens].
        """
        self.ranked += rank(logits.float().log_softmax(-1), tokens, self.count)


class PromptDescription:
    """Describes a prompt's positions, a part at a time, so that other work of the thread does not wait long.

    Attributes:
        positions: those that have been described; None for the first, which has no log probability.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: Sequence[int], scores: PromptScores, skip_special_tokens: bool
    ) -> None:
        self.positions: list[TokenLogprobs | None] = [None]
        self._vocabulary = vocabulary
        self._prompt = prompt
        self._ranked = scores.ranked
        self._text = Detokenizer(vocabulary, (), skip_special_tokens)
        self._text.push(prompt[0])

    @property
    def is_complete(self) -> bool:
        return len(self.positions) == len(self._prompt)

    def extend(self) -> None:
        """Describe the next positions; takes some 10 ms."""
        start = len(self.positions)
        end = min(start + max(1, _LOGPROBS_AT_A_TIME // (1 + len(self._ranked[0].top))), len(self._prompt))
        for position in range(start, end):
            token, ranked = self._prompt[position], self._ranked[position - 1]
            self.positions.append(describe(self._vocabulary, token, ranked, self._text.length))
            self._text.push(token)
