"""The typed call between the protocols and the generators: token ids and sampling in, deltas of text out.

Imports no torch and no HTTP, so that both sides can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from runners.errors import InputError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a prompt is continued; names and meanings are OpenAI's, those it lacks (top_k, ...) are vLLM's.

    None is the model's own default (its generation_config.json), or, where it has none, OpenAI's.

    Attributes:
        max_tokens: most tokens to generate; None is as many as the context has room for.
        temperature: 0 is greedy.
        top_k: 0 or less is all of the vocabulary.
        stop: strings that end the text and are left out of it.
        presence_penalty, frequency_penalty: subtracted from the logits of tokens generated before, once or for each
            time; https://platform.openai.com/docs/advanced-usage#frequency-and-presence-penalties
        repetition_penalty: divides (multiplies, where negative) the logits of tokens of prompt and output.
        logit_bias: added to the logits, by token id.
        ignore_eos: go on where the model would end.
        logprobs: with each token its log probability and those of so many most likely ones; None for neither.
    """

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A generated token, its log probability before temperature and truncation, and the most likely ones instead."""

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """What has been generated since the last one; the last one of a sequence has a finish reason.

    Attributes:
        text: may be empty, while a character is incomplete or may be the beginning of a stop string.
        tokens: how many tokens were generated; one that ends the sequence counts, as in vLLM.
    """

    text: str
    tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()


def check_characters(text: str, max_length: int, longest_token: int) -> None:
    """Refuse a text that is surely too long before it is tokenized, which takes 20 s for 20 MB; vLLM does the same.

    Args:
        longest_token: the characters of the vocabulary's longest token.

    Raises:
        InputError: it has more characters than so many tokens can have.
    """
    if len(text) > (most := max_length * longest_token):
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, which have {most} characters at most, but "
            f"the prompt has {len(text)} characters"
        )


class Engine(Protocol):
    """What runs the model of a generator: vLLM or `transformers`."""

    @property
    def max_length(self) -> int:
        """Most tokens a sequence may have; for a decoder prompt and output together."""

    @property
    def failed(self) -> bool:
        """Whether the engine has died: it answers nothing any more."""

    async def tokenize(self, prompt: str) -> list[int]:
        """The token ids of a prompt, with the special tokens that the model expects."""

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; to close the iterator frees the sequence at once.

        Raises:
            InputError: the prompt is too long; the message has both lengths.
            EngineDeadError: the engine has died.
        """

    def close(self) -> None:
        """Stop; what runs fails. Blocks until it has."""


class ChatEngine(Engine, Protocol):
    """An engine whose chats are rendered by this server."""

    async def tokenize_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, **options: Any
    ) -> list[int]:
        """The token ids of a chat by the model's chat template; `options` are the template's variables.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
        """
