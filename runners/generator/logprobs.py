"""Log probabilities of tokens as callers get them, and those of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from runners.core.generation import TokenLogprob, TokenLogprobs
from runners.generator.detokenizer import Detokenizer
from runners.generator.sampler import Ranked, rank
from runners.generator.vocabulary import Vocabulary

# As vLLM: what cannot come has no infinite number, which JSON lacks.
_LEAST = -9999.0
_LOGPROBS_AT_A_TIME = 4096


def describe(vocabulary: Vocabulary, token: int, ranked: Ranked, offset: int) -> TokenLogprobs:
    """A position of a text, at an offset in characters."""
    return TokenLogprobs(
        _entry(vocabulary, token, ranked.logprob, ranked.rank),
        tuple(_entry(vocabulary, *each) for each in ranked.top),
        offset,
    )


def _entry(vocabulary: Vocabulary, token: int, logprob: float, place: int) -> TokenLogprob:
    return TokenLogprob(token, vocabulary.text(token), vocabulary.data(token), max(logprob, _LEAST), place)


@dataclass(slots=True)
class PromptScores:
    """What is known of a prompt's tokens, but for the first one, as far as the prompt has been computed.

    Attributes:
        count: how many of the most likely tokens are told at each position.
    """

    count: int
    ranked: list[Ranked]

    def add(self, logits: Tensor, tokens: Tensor) -> None:
        """Take the next tokens, [tokens], and the logits before each, [tokens, vocabulary]."""
        self.ranked += rank(logits.float().log_softmax(-1), tokens, self.count)


class PromptDescription:
    """A prompt's positions, described some at a time: they are many, and others wait for the thread.

    Attributes:
        positions: those that are described; None for the first, of which nothing is known.
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
        """Describe the next positions, which takes some 10 ms."""
        start = len(self.positions)
        end = min(start + max(1, _LOGPROBS_AT_A_TIME // (1 + len(self._ranked[0].top))), len(self._prompt))
        for position in range(start, end):
            token, ranked = self._prompt[position], self._ranked[position - 1]
            self.positions.append(describe(self._vocabulary, token, ranked, self._text.length))
            self._text.push(token)
