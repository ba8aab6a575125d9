"""The tokens of a vocabulary: their bytes, their text within a text, and whether they are special."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

# The replacement of bytes that are no character.
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary:
    """The tokens of a tokenizer, with a cache of their texts and bytes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> None:
        """
        Args:
            size: number of token ids of the model, if it has more than the tokenizer.
        """
        size = max(size or 0, len(tokenizer))
        self.tokenizer = tokenizer
        self.size = size
        self._strings: dict[int, str | None] = {}
        self._data: dict[int, bytes] = {}
        self._texts: dict[int, str] = {}
        backend = _backend(tokenizer)
        kinds = _decoder_kinds(tokenizer)
        self._decode = backend.decode if kinds else None
        # Every token is a sequence of bytes; a text is decoded from their concatenation.
        self.is_byte_level = kinds == ["ByteLevel"]
        self._has_byte_tokens = "ByteFallback" in kinds
        # The tokens that a text does not have if special tokens are skipped.
        self.special = frozenset(
            tokenizer.all_special_ids
            if backend is None
            else (token for token, added in backend.get_added_tokens_decoder().items() if added.special)
        )
        # At load: `encode` changes the tokenizer's truncation, which other threads use later.
        self._anchor = self._find_anchor()

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens, without the tokenizer's clean-up of spaces, which would change text already sent."""
        if self._decode is not None:
            text = self._decode(list(ids), skip_special_tokens=skip_special_tokens)
        else:
            text = self.tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        assert isinstance(text, str)
        return text

    def string(self, token: int) -> str | None:
        """The token as the vocabulary writes it; None for an id without a token."""
        if token not in self._strings:
            try:
                string = self.tokenizer.convert_ids_to_tokens(token)
            except (IndexError, KeyError, OverflowError, ValueError):
                string = None
            self._strings[token] = string if isinstance(string, str) else None
        return self._strings[token]

    def byte(self, token: int) -> bytes | None:
        """The byte of a byte token (`<0xE2>`, for text without a SentencePiece piece); None for other tokens."""
        if not self._has_byte_tokens or (string := self.string(token)) is None:
            return None
        match = _BYTE_TOKEN.fullmatch(string)
        return bytes.fromhex(match[1]) if match else None

    def data(self, token: int) -> bytes:
        """The bytes that a token adds to a text in UTF-8, also those of a part of a character."""
        if token not in self._data:
            self._data[token] = self._find_data(token)
        return self._data[token]

    def text(self, token: int) -> str:
        """The text that a token adds, with its leading space; parts of characters become replacement characters."""
        if token not in self._texts:
            if self.is_byte_level or self.byte(token) is not None:
                self._texts[token] = self.data(token).decode(errors="replace")
            else:
                self._texts[token] = self._beside_anchor(token)
        return self._texts[token]

    def _find_data(self, token: int) -> bytes:
        string = self.string(token)
        if string is None:
            return b""
        if self.is_byte_level:
            # A token with any other character stands for itself, as in the decoder.
            codes = [_BYTES.get(character) for character in string]
            byte_codes = [code for code in codes if code is not None]
            return bytes(byte_codes) if len(byte_codes) == len(codes) else string.encode(errors="replace")
        return self.byte(token) or self.text(token).encode(errors="replace")

    def _beside_anchor(self, token: int) -> str:
        """The text of a token after another one: the first token of a text lacks its space."""
        if self.string(token) is None:
            return ""
        anchor, anchor_text = self._anchor
        text = self.decode([*anchor, token])
        if text.startswith(anchor_text):
            return text[len(anchor_text) :]
        return self.decode([token])

    def _find_anchor(self) -> tuple[list[int], str]:
        """Tokens whose text does not depend on those that follow, and this text."""
        for text in ("a", "0", "."):
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            if ids and not self.special.intersection(ids):
                return list(ids), self.decode(ids)
        return [], ""


def _backend(tokenizer: PreTrainedTokenizerBase) -> Any:
    return getattr(tokenizer, "backend_tokenizer", None) if isinstance(tokenizer, TokenizersBackend) else None


def _decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The kinds of the decoder's parts; empty if the tokenizer decodes in Python."""
    backend = _backend(tokenizer)
    if backend is None or backend.decoder is None or type(tokenizer)._decode is not TokenizersBackend._decode:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    return [part["type"] for part in decoder.get("decoders", [decoder])]


def _byte_characters() -> dict[str, int]:
    """The characters with which byte-level vocabularies write bytes; invisible bytes get characters after U+00FF."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [code for code in range(0x100) if code not in visible]
    return {chr(code): code for code in visible} | {chr(0x100 + index): code for index, code in enumerate(hidden)}


_BYTES = _byte_characters()
