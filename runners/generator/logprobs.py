"""Log probabilities of tokens as callers get them, and those of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from runners.generation import TokenLogprob, TokenLogprobs
from runners.generator.detokenizer import Detokenizer
from runners.generator.sampling import Ranked, rank
from runners.generator.vocabulary import Vocabulary

# As vLLM: what cannot come has no infinite number, which JSON lacks.
_LEAST = -9999.0


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


def describe_prompt(
    vocabulary: Vocabulary, prompt: Sequence[int], scores: PromptScores, skip_special_tokens: bool
) -> tuple[TokenLogprobs | None, ...]:
    """The prompt's positions; None for the first, of which nothing is known."""
    text = Detokenizer(vocabulary, (), skip_special_tokens)
    text.push(prompt[0])
    described: list[TokenLogprobs | None] = [None]
    for token, ranked in zip(prompt[1:], scores.ranked, strict=True):
        described.append(describe(vocabulary, token, ranked, text.length))
        text.push(token)
    return tuple(described)
