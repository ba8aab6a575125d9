"""The sampler's settings of a request, checked against the model: token ids, bad words, contradictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from runners.core.errors import InputError
from runners.core.generation import Sampling
from runners.generator.generation_defaults import Defaults
from runners.generator.sampler import Settings

# vLLM's: VLLM_MAX_NUM_BAD_WORDS, VLLM_MAX_BAD_WORDS_TOTAL_TOKENS and MAX_LOGPROB_TOKEN_IDS.
_MAX_BAD_WORDS = 128
_MAX_BAD_TOKENS = 1024
_MAX_LOGPROB_IDS = 128


def resolve(sampling: Sampling, defaults: Defaults, tokenizer: PreTrainedTokenizerBase) -> Settings:
    """The settings of a request's rows; tokenizes `bad_words`.

    Raises:
        InputError: a token id is outside of the vocabulary, or parameters contradict each other.
    """
    vocabulary = defaults.vocabulary
    settings = defaults.resolve(sampling)
    _check_ids("stop_token_ids", sampling.stop_token_ids, vocabulary)
    _check_ids("allowed_token_ids", sampling.allowed_token_ids or (), vocabulary)
    _check_ids("logprob_token_ids", sampling.logprob_token_ids, vocabulary)
    if sampling.allowed_token_ids is not None and not sampling.allowed_token_ids:
        raise InputError("allowed_token_ids is empty: no token could be generated", "allowed_token_ids")
    if sampling.min_tokens < 0:
        raise InputError(f"min_tokens must be at least 0, not {sampling.min_tokens}", "min_tokens")
    named = len(sampling.logprob_token_ids)
    if named > _MAX_LOGPROB_IDS:
        raise InputError(f"logprob_token_ids has {named} tokens, {_MAX_LOGPROB_IDS} are the most", "logprob_token_ids")
    ends = {*sampling.stop_token_ids, *(end for end in defaults.eos if end < vocabulary)}
    return replace(
        settings,
        min_tokens=sampling.min_tokens,
        ends=tuple(sorted(ends)),
        bad_words=_encode_words(sampling.bad_words, tokenizer, vocabulary),
        allowed=None if sampling.allowed_token_ids is None else tuple(dict.fromkeys(sampling.allowed_token_ids)),
        logprobs=named if named else sampling.logprobs,
        logprob_ids=sampling.logprob_token_ids,
    )


def find_ends(sampling: Sampling, defaults: Defaults, primary: int | None) -> dict[int, int | None]:
    """The tokens that end an output, each with its stop reason: as in vLLM, None for the tokenizer's end token.

    Args:
        primary: the tokenizer's end token.
    """
    ends: dict[int, int | None] = {token: token for token in sampling.stop_token_ids}
    # A completed constraint allows no further token but an end token, also with `ignore_eos`.
    if not sampling.ignore_eos or sampling.constraint is not None:
        ends |= {token: None if token == primary else token for token in defaults.eos}
    return ends


def _check_ids(name: str, ids: Iterable[int], vocabulary: int) -> None:
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InputError(f"{name} has token {token}, but the vocabulary ends at {vocabulary - 1}", name)


def _encode_words(
    words: Sequence[str], tokenizer: PreTrainedTokenizerBase, vocabulary: int
) -> tuple[tuple[int, ...], ...]:
    """The tokens of words as in vLLM: at the beginning of a text, and after a space where these differ."""
    encoded_words: list[tuple[int, ...]] = []
    for word in dict.fromkeys(words):
        if not word:
            raise InputError("bad_words has an empty text", "bad_words")
        plain = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
        if not plain:
            raise InputError(f"bad_words has {word!r}, which has no tokens", "bad_words")
        spaced = tuple(tokenizer.encode(f" {word.lstrip()}", add_special_tokens=False))
        encoded_words.append(plain)
        if len(spaced) == len(plain) and spaced[0] != plain[0]:
            encoded_words.append(spaced)
        tokens = sum(map(len, encoded_words))
        if len(encoded_words) > _MAX_BAD_WORDS or tokens > _MAX_BAD_TOKENS:
            raise InputError(
                f"bad_words has more than {_MAX_BAD_WORDS} words or {_MAX_BAD_TOKENS} tokens, each word counted with "
                "and without a space before",
                "bad_words",
            )
    _check_ids("bad_words", (token for word in encoded_words for token in word), vocabulary)
    return tuple(encoded_words)
