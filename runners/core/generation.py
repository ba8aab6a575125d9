"""The typed call between the protocols and the generators: token ids and sampling in, deltas of text out.

Imports no torch and no HTTP, so that both sides can.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from runners.core.errors import InputError

if TYPE_CHECKING:
    from runners.core.admission import Admitted

FinishReason = Literal["stop", "length"]
# Of `allowed_token_ids`, once for each choice.
MAX_ALLOWED_TOKENS = 2**19


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the whole output must match; the names are those of vLLM's `structured_outputs`.

    Attributes:
        kind: of `value`.
        value: a JSON schema as JSON text, a regular expression, a grammar (Lark or EBNF), or the choices; nothing for
            `json_object`.
        param: the field of the request that has it, for errors.
    """

    kind: Literal["json", "json_object", "regex", "choice", "grammar"]
    value: str | tuple[str, ...] = ""
    param: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Beam search instead of sampling.

    Attributes:
        width: beams that are kept, at least as many as there are choices.
        choices: how many of the best sequences are returned, best first.
        length_penalty: a sequence's score is its log probability divided by its length to this power.
    """

    width: int
    choices: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a prompt becomes token ids.

    Attributes:
        add_special_tokens: None for what the route does by default: yes for texts, no for chats.
        truncate_to: most tokens that are kept; -1 for as many as the model takes, None to refuse a prompt that is
            longer.
        truncation_side: where tokens are dropped; None for left, or, of an encoder-decoder, the tokenizer's own side.
        source_language: the tokenizer's name for the language of the text (NLLB, mBART, M2M100).
    """

    add_special_tokens: bool | None = None
    truncate_to: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    source_language: str | None = None


DEFAULT_PROMPT_OPTIONS = PromptOptions()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a prompt is continued; names and meanings are OpenAI's, those it lacks (top_k, ...) are vLLM's.

    None is the model's own default (its generation_config.json), or, where it has none, OpenAI's.

    Attributes:
        max_tokens: most tokens to generate; 0 only computes the prompt.
        default_tokens: the same where neither the request nor an encoder-decoder itself says how many; None for as many
            as the context has room for.
        min_tokens: before so many tokens neither an end token nor one of `stop_token_ids` is generated.
        temperature: 0 is greedy.
        top_k: 0 or less is all of the vocabulary.
        stop: strings that end the text and are left out of it, unless `include_stop`.
        stop_token_ids: tokens that end the text, as an end token does.
        bad_words: texts that are not generated.
        allowed_token_ids: the only tokens that are generated; None for all.
        presence_penalty, frequency_penalty: subtracted from the logits of tokens generated before, once or for each
            time; https://platform.openai.com/docs/advanced-usage#frequency-and-presence-penalties
        repetition_penalty: divides (multiplies, where negative) the logits of tokens of prompt and output.
        logit_bias: added to the logits, by token id.
        ignore_eos: go on where the model would end.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: with each token its log probability and those of so many most likely ones; None for neither.
        logprob_token_ids: tokens whose log probabilities are given instead of the most likely ones'.
        prompt_logprobs: the same as `logprobs` for the tokens of the prompt.
        target_language: the tokenizer's name for the language that is generated (NLLB, mBART, M2M100).
    """

    max_tokens: int | None = None
    default_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None
    beam_search: BeamSearch | None = None
    target_language: str | None = None


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """A token and its log probability before temperature and truncation, at least -9999: JSON has no infinity.

    Attributes:
        text: what it decodes to, with its leading space; where its bytes are no whole characters, not unique.
        data: its true bytes in UTF-8.
        rank: its place among all tokens by probability, from 1.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float
    rank: int


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One position of an output or a prompt.

    Attributes:
        chosen: the token that stands there.
        top: the most likely ones, best first, or those that `logprob_token_ids` names.
        offset: characters of the text (of the output, or of the prompt) before this token.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """What has been generated since the last one; the last one of a choice has a finish reason.

    Attributes:
        text: may be empty, while a character is incomplete or may be the beginning of a stop string.
        token_ids: the tokens that were generated; one that ends the sequence counts, as in vLLM.
        stop_reason: the stop string or token of the request that ended the choice.
        choice: 0 unless beam search returns several.
        prompt_logprobs: of the whole prompt, with the first delta, where asked for; None for its first token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: int | str | None = None
    choice: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None


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

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a prompt, with the special tokens that the model expects."""

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        """As many tokens of a prompt as the options keep.

        Raises:
            InputError: more are to be kept than the model takes.
        """

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; to close the iterator frees the sequence at once.

        Args:
            admitted: the request that it is of, which shares the model fairly with others, and is told once the
                sequence is accepted; None for one of its own.

        Raises:
            InputError: the prompt is too long; the message has both lengths.
            EngineDeadError: the engine has died.
        """

    def close(self) -> None:
        """Stop; what runs fails. Blocks until it has."""


class ChatEngine(Engine, Protocol):
    """An engine whose chats are rendered, and whose prompts are shown, by this server."""

    async def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] = MappingProxyType({}),
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
    ) -> list[int]:
        """The token ids of a chat by the model's chat template.

        Args:
            messages: their content is a string, a list of parts with a `type` and a `text`, or None.
            variables: of the template.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
        """

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """

    async def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary has them.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
