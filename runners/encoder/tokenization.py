"""Texts to token ids, straight through the Rust tokenizer of a `transformers` fast tokenizer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from runners.errors import ArgumentsError, InputError
from runners.inference import TextInput, TokenInput

# Several times what a token of any language has on average.
_CHARACTERS_A_TOKEN = 32


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One text as the model reads it: int64 [tokens] each, offsets int64 [tokens, 2]."""

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    offsets: NDArray[np.int64] | None
    truncated: bool


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
        self._long_text = max_length * _CHARACTERS_A_TOKEN if tokenizer.truncation_side == "right" else sys.maxsize
        self._backend = backend
        self._add_special_tokens = add_special_tokens
        self._lower_case = lower_case

    def tokenize(self, texts: Sequence[TextInput], offsets: bool, prompt: str = "") -> list[TokenizedText]:
        """Tokenize texts, the longer of a pair truncated first.

        Args:
            prompt: put in front of every text.
        """
        inputs = [self._prepare(item, prompt) for item in texts]
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        beginnings = [self._beginning(item) for item in inputs]
        encodings = encode(beginnings, add_special_tokens=self._add_special_tokens)
        for position, (item, beginning) in enumerate(zip(inputs, beginnings, strict=True)):
            if beginning is not item and not encodings[position].overflowing:
                [encodings[position]] = encode([item], add_special_tokens=self._add_special_tokens)
        return [_tokenized(encoding, offsets) for encoding in encodings]

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


def _tokenized(encoding: Encoding, offsets: bool) -> TokenizedText:
    return TokenizedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64),
        offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) if offsets else None,
        truncated=bool(encoding.overflowing),
    )
