"""The types that protocols and generators exchange: prompts and sampling go in, deltas of text come out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
# Most ids in `allowed_token_ids`, counted once for each choice.
MAX_ALLOWED_TOKENS = 2**19


@dataclass(frozen=True, slots=True)
class Constraint:
    """A format that the whole output must match; the names are those of vLLM's `structured_outputs`.

    Attributes:
        kind: the kind of `value`.
        value: a JSON schema as JSON text, a regular expression, a grammar (Lark or EBNF), or the choices; empty for
            `json_object`.
        param: the field of the request that sets the constraint, for error messages.
    """

    kind: Literal["json", "json_object", "regex", "choice", "grammar"]
    value: str | tuple[str, ...] = ""
    param: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class BeamSearch:
    """Beam search instead of sampling.

    Attributes:
        width: number of beams, at least the number of choices.
        choices: number of sequences that are returned, best first.
        length_penalty: a sequence's score is its log probability divided by its length to this power.
    """

    width: int
    choices: int = 1
    length_penalty: float = 1.0


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """How a prompt is tokenized.

    Attributes:
        add_special_tokens: None for the default: yes for texts, no for chats.
        truncate_to: most tokens that are kept; -1 for the model's limit, None to refuse longer prompts.
        truncation_side: where tokens are dropped; None for left, or, for an encoder-decoder, the tokenizer's side.
        source_language: the tokenizer's name for the language of the text (NLLB, mBART, M2M100).
    """

    add_special_tokens: bool | None = None
    truncate_to: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    source_language: str | None = None


DEFAULT_PROMPT_OPTIONS = PromptOptions()


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a prompt is continued; names and meanings are OpenAI's, those that OpenAI lacks (top_k, ...) are vLLM's.

    None is the model's own default (its generation_config.json), or OpenAI's where the model has none.

    Attributes:
        max_tokens: most tokens to generate; 0 only computes the prompt.
        default_tokens: the limit where neither the request nor an encoder-decoder's configuration sets one; None for
            as many tokens as the context has room for.
        min_tokens: number of tokens before which neither an end token nor one of `stop_token_ids` is generated.
        temperature: 0 is greedy.
        top_k: 0 or less allows the whole vocabulary.
        samples: whether tokens are sampled if `temperature` is None and the model's files do not say so; None: if a
            field asks for what only sampling has, a seed among them.
        typical_p: only the most typical tokens, whose probabilities add up to this; 1 allows all.
            https://huggingface.co/papers/2202.00666
        stop: strings that end the output; they are not part of it, unless `include_stop` is set.
        stop_token_ids: tokens that end the output, as an end token does.
        bad_words: texts that are not generated.
        allowed_token_ids: the only tokens that are generated; None for all.
        presence_penalty, frequency_penalty: subtracted from the logits of generated tokens, once or once for each
            occurrence; https://platform.openai.com/docs/advanced-usage#frequency-and-presence-penalties
        repetition_penalty: divides (multiplies, where negative) the logits of tokens of prompt and output.
        logit_bias: added to the logits, by token id.
        ignore_eos: continue after the model's end token.
        skip_special_tokens: leave special tokens out of the text.
        logprobs: return each token's log probability, and those of this many most likely tokens; None for neither.
        logprob_token_ids: tokens whose log probabilities are returned instead of those of the most likely ones.
        prompt_logprobs: like `logprobs`, for the tokens of the prompt.
        target_language: the tokenizer's name for the language of the output (NLLB, mBART, M2M100).
    """

    max_tokens: int | None = None
    default_tokens: int | None = None
    min_tokens: int = 0
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    samples: bool | None = None
    typical_p: float | None = None
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

    @property
    def asks_typical(self) -> bool:
        """Whether `typical_p` leaves tokens out."""
        return self.typical_p is not None and self.typical_p < 1


@dataclass(frozen=True, slots=True)
class Chat:
    """Messages that become a prompt by the model's chat template.

    Attributes:
        messages: each has a role and content: a string, a list of parts with a `type` and a `text`, or None.
        tools: in the form that chat templates expect.
        variables: further variables of the template.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)


def join_text_parts(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """The content of a chat's message as one text, with its text parts in lines of their own."""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())


# A text, the token ids of one (a list, or an int64 [tokens] array), or a chat.
Prompt: TypeAlias = "str | Sequence[int] | NDArray[np.int64] | Chat"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Prompts, and how each of them is continued.

    Attributes:
        choices: number of continuations of each prompt.
        echo: whether the prompts are returned as text (`AcceptedRequest.echoes`).
        collected: whether the caller keeps the deltas until the last one. Their log probabilities are then limited,
            also where the request does not say how many tokens it wants.
    """

    prompts: Sequence[Prompt]
    sampling: Sampling
    options: PromptOptions = DEFAULT_PROMPT_OPTIONS
    choices: int = 1
    echo: bool = False
    collected: bool = True


@dataclass(frozen=True, slots=True)
class EchoedPrompt:
    """A prompt as text.

    Attributes:
        first_token: the text of its first token, which has no log probability; empty unless these were asked for.
    """

    text: str
    first_token: str


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A request whose sequences wait for the model or run.

    Attributes:
        prompts: the token ids of each prompt.
        choices: number of continuations of each prompt.
        echoes: the prompts as text; empty unless the request asks for them.
        deltas: the deltas of all choices as they come, with the choice's index: the choices of the first prompt come
            first. Beam search may find fewer sequences than there are choices.
    """

    prompts: Sequence[Sequence[int]]
    choices: int
    echoes: Sequence[EchoedPrompt]
    deltas: AsyncIterator[tuple[int, Delta]]

    def prompt_of(self, index: int) -> int:
        """The position of the prompt that a choice continues."""
        return index // self.choices


# Instead of minus infinity, which JSON lacks; the number is vLLM's.
LEAST_LOGPROB = -9999.0


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """A token and its log probability before temperature and truncation, at least `LEAST_LOGPROB`.

    Attributes:
        text: the token's text, with its leading space; not unique where its bytes are no whole characters.
        data: the token's bytes in UTF-8.
        rank: its rank among all tokens by probability, from 1.
        special: whether the text of an output leaves it out, as an end token.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float
    rank: int
    special: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """The log probabilities at one position of an output or a prompt.

    Attributes:
        chosen: the token at this position.
        top: the most likely tokens, best first, or those of `logprob_token_ids`.
        offset: number of characters of the text (of the output, or of the prompt) before this token.
    """

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Delta:
    """The output of a choice since its previous delta; the last delta of a choice has a finish reason.

    Attributes:
        text: may be empty, while a character is incomplete or the text may be the beginning of a stop string.
        token_ids: the generated tokens; a token that ends the sequence counts, as in vLLM.
        stop_reason: the stop string or token of the request that ended the choice.
        choice: 0 unless beam search returns several choices.
        prompt_logprobs: by position of the prompt, with the first delta, if requested; None for the first token.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    stop_reason: int | str | None = None
    choice: int = 0
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
