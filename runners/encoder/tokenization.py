"""Texts to token ids, straight through the Rust tokenizer of a `transformers` fast tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from runners.errors import ArgumentsError, InputError
from runners.inference import TextInput, TokenInput

# Several times what a token of any language has on average.
_CHARACTERS_A_TOKEN = 32


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tokens of a text come from.

    Attributes:
        text: the text as it was given, or its words.
        spans: int64 [tokens, 2], where each token starts and ends: code points of the text, or positions of its words.
        special: bool [tokens], whether the tokenizer has added it, as [CLS].
        continues: bool [tokens], whether it goes on with the word of the token before.
    """

    text: str | tuple[str, ...]
    spans: NDArray[np.int64]
    special: NDArray[np.bool_]
    continues: NDArray[np.bool_]

    @property
    def split(self) -> bool:
        """Whether the caller has split the text into words."""
        return not isinstance(self.text, str)

    def cut(self, start: int, end: int) -> str:
        """The text between two places, words with a space between them."""
        piece = self.text[start:end]
        return piece if isinstance(piece, str) else " ".join(piece)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as the model reads it: int64 [tokens] each, offsets int64 [tokens, 2]."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    offsets: NDArray[np.int64] | None
    truncated: bool
    source: Source | None = None


class TextTokenizer:
    """Tokenizes batches of texts without padding; thread-safe, and frees the GIL while it works."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer; its truncation settings are taken over.
            max_length: longest text in tokens, special ones included.
            add_special_tokens: whether to add [CLS], [SEP] and their like.
            lower_case: lower-case texts first, as sentence-transformers can be told to.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        special = backend.num_special_tokens_to_add(True) if add_special_tokens else 0
        if max_length <= special:
            raise ArgumentsError(f"max_length {max_length} is too short: special tokens alone take up to {special}")
        backend.no_padding()
        # "longest_first" and the tokenizer's own side are what `tokenizer(..., truncation=True)` does.
        backend.enable_truncation(max_length, strategy="longest_first", direction=tokenizer.truncation_side)
        from_left = tokenizer.truncation_side == "right"
        self._long_text = max_length * _CHARACTERS_A_TOKEN if from_left else sys.maxsize
        self._many_words = max_length if from_left else sys.maxsize
        self._backend = backend
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        # WordPiece marks the tokens that carry on a word.
        self._marks_words = bool(getattr(backend.model, "continuing_subword_prefix", None))
        self._add_special_tokens = add_special_tokens
        self._lower_case = lower_case

    def tokenize(
        self, texts: Sequence[TextInput], offsets: bool, source: bool = False, prompt: str = ""
    ) -> list[TokenizedText]:
        """Tokenize texts, the longer of a pair truncated first.

        Args:
            offsets: whether these are wanted.
            source: whether that is wanted, of single texts without a prompt; it always comes with words.
            prompt: put in front of every text.
        """
        whole = iter(self._tokenize_whole([item for item in texts if item.words is None], offsets, source, prompt))
        split = iter(self._tokenize_words([item.words for item in texts if item.words is not None], offsets))
        return [next(whole if item.words is None else split) for item in texts]

    def _tokenize_whole(
        self, texts: Sequence[TextInput], offsets: bool, source: bool, prompt: str
    ) -> list[TokenizedText]:
        inputs = [self._prepare(item, prompt) for item in texts]
        located = offsets or source
        encode = self._backend.encode_batch if located else self._backend.encode_batch_fast
        beginnings = [self._beginning(item) for item in inputs]
        encodings = encode(beginnings, add_special_tokens=self._add_special_tokens)
        for position, (item, beginning) in enumerate(zip(inputs, beginnings, strict=True)):
            if beginning is not item and not encodings[position].overflowing:
                [encodings[position]] = encode([item], add_special_tokens=self._add_special_tokens)
        tokenized = [_tokenized(encoding, located) for encoding in encodings]
        if not source:
            return tokenized
        return [
            replace(text, source=self._find_source(item.text, encoding, text))
            for item, encoding, text in zip(texts, encodings, tokenized, strict=True)
        ]

    def _find_source(self, text: str, encoding: Encoding, tokenized: TokenizedText) -> Source:
        """What carries on a word is told as `transformers.TokenClassificationPipeline` does."""
        spans = tokenized.offsets
        assert spans is not None
        if self._marks_words:
            continues = self._token_lengths[tokenized.input_ids] != spans[:, 1] - spans[:, 0]
        else:
            starts = spans[:, 0].tolist()
            continues = np.array([start > 0 and " " not in text[start - 1 : start + 1] for start in starts], dtype=bool)
        continues &= tokenized.input_ids != self._unknown
        return Source(text, spans, np.array(encoding.special_tokens_mask, dtype=bool), continues)

    def _tokenize_words(self, texts: Sequence[tuple[str, ...]], offsets: bool) -> list[TokenizedText]:
        if not texts:
            return []
        beginnings = [words[: self._many_words] for words in texts]
        encodings = self._encode_words(beginnings)
        for position, (words, beginning) in enumerate(zip(texts, beginnings, strict=True)):
            if len(beginning) < len(words) and not encodings[position].overflowing:
                [encodings[position]] = self._encode_words([words])
        return [
            replace(_tokenized(encoding, offsets), source=_find_words(words, encoding))
            for words, encoding in zip(texts, encodings, strict=True)
        ]

    def _encode_words(self, texts: Sequence[tuple[str, ...]]) -> list[Encoding]:
        return self._backend.encode_batch(
            list(texts), is_pretokenized=True, add_special_tokens=self._add_special_tokens
        )

    @cached_property
    def _token_lengths(self) -> NDArray[np.int64]:
        """How many characters each token of the vocabulary has, marks included: int64 [tokens]."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        return lengths

    def _prepare(self, item: TextInput, prompt: str) -> str | tuple[str, str]:
        text, pair = prompt + item.text, item.pair
        if self._lower_case:
            text, pair = text.lower(), pair.lower() if pair is not None else None
        return text if pair is None else (text, pair)

    def _beginning(self, item: str | tuple[str, str]) -> str | tuple[str, str]:
        """As much of a very long text as its first tokens surely come from; to tokenize 30 MB takes 20 s and 2 GB.

        It ends where a word does, so that the tokens before are those of the whole text; if it does not fill the
        model the whole text is needed.
        """
        if isinstance(item, tuple) or len(item) <= self._long_text:
            return item
        end = item.rfind(" ", 0, self._long_text)
        return item[:end] if end > 0 else item


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """What token ids must be for the model to read them.

    Attributes:
        max_length: most tokens of a text.
        vocabulary: how many token ids there are.
        token_types: how many token type ids there are; 0 where the model takes none.
    """

    max_length: int
    vocabulary: int
    token_types: int

    @classmethod
    def of(cls, config: PretrainedConfig, max_length: int, takes_token_types: bool) -> TokenLimits:
        """Those of a model by its config."""
        # DeBERTa takes them and has a table of none.
        token_types = max(1, int(getattr(config, "type_vocab_size", 1)))
        return cls(max_length, int(config.vocab_size), token_types if takes_token_types else 0)

    def accept(self, given: TokenInput) -> TokenizedText:
        """A text as the caller has tokenized it; it is not truncated, since its last token may be a special one.

        Raises:
            InputError: it is too long, or has an id that the model does not know.
        """
        ids, types = given.input_ids, given.token_type_ids
        if len(ids) > self.max_length:
            raise InputError(f"it has {len(ids)} tokens; the model takes {self.max_length}")
        _check_ids(ids, self.vocabulary, "input_ids")
        if types is None:
            return TokenizedText(ids, np.zeros_like(ids), None, truncated=False)
        if not self.token_types:
            raise InputError("it has token_type_ids, and the model takes none")
        _check_ids(types, self.token_types, "token_type_ids")
        return TokenizedText(ids, types, None, truncated=False)


def _check_ids(ids: NDArray[np.int64], count: int, name: str) -> None:
    if not len(ids):
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= count:
        raise InputError(f"{low if low < 0 else high} is none of the model's {name}, which are 0 to {count - 1}")


def _find_words(words: tuple[str, ...], encoding: Encoding) -> Source:
    """Tokens of one word carry it on, and are where it is."""
    special = np.array(encoding.special_tokens_mask, dtype=bool)
    positions = np.array([0 if word is None else word for word in encoding.word_ids], dtype=np.int64)
    continues = np.zeros(len(positions), dtype=bool)
    continues[1:] = (positions[1:] == positions[:-1]) & ~special[:-1]
    return Source(words, np.stack([positions, positions + 1], axis=1), special, continues)


def _tokenized(encoding: Encoding, offsets: bool) -> TokenizedText:
    return TokenizedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64),
        offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) if offsets else None,
        truncated=bool(encoding.overflowing),
    )
