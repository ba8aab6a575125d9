"""Decodes token ids one by one, into pieces of whole characters that add up to the tokenizer's text of all tokens.

Each token takes constant time. With `tokenizers`' own DecodeStream the time grows: tokens without text (special tokens,
bytes that are no character) stay in the window that it decodes at each step.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice

from runners.generator.vocabulary import REPLACEMENT, Vocabulary

# Number of previous tokens that are decoded with a token: in SentencePiece they decide whether a space precedes it.
_CONTEXT = 6
# Most tokens that are held back while they decode to no character; a character has four bytes at most.
_MAX_HELD = 16


class Detokenizer:
    """The text of one sequence of tokens.

    Attributes:
        length: number of characters so far, without an incomplete one.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], skip_special_tokens: bool = True) -> None:
        """
        Args:
            context: the tokens before the sequence. If their last character is incomplete, it is part of this
                sequence.
        """
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special if skip_special_tokens else frozenset[int]()
        self._characters = _Characters(vocabulary.is_byte_level)
        self.length = 0
        last_first = (token for token in reversed(context) if not self._is_skipped(token))
        context_tokens = list(islice(last_first, _CONTEXT))[::-1]
        if vocabulary.is_byte_level:
            self._characters.begin(b"".join(map(vocabulary.data, context_tokens)))
            return
        data = [vocabulary.byte(token) for token in context_tokens]
        whole = next((i for i in range(len(context_tokens), 0, -1) if data[i - 1] is None), 0)
        # If all of these tokens are bytes, the first one is still context.
        self._characters.begin(b"".join(byte for byte in data[whole:] if byte is not None))
        self._window = context_tokens[:whole] or context_tokens[:1]
        self._window_text = self._decode(self._window)
        if whole:
            # An incomplete character at its end is part of this sequence.
            self._window_text = self._window_text.rstrip(REPLACEMENT)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that a token adds; "" while a character is incomplete."""
        text = "" if self._is_skipped(token) else self._add(token)
        self.length += len(text)
        return text

    def finish(self) -> str:
        """The text of an incomplete character after the last token."""
        text = self._characters.finish()
        if not self._vocabulary.is_byte_level and self._held:
            text += self._added(self._held)
        self.length += len(text)
        return text

    def _is_skipped(self, token: int) -> bool:
        return token in self._skipped or self._vocabulary.string(token) is None

    def _add(self, token: int) -> str:
        if self._vocabulary.is_byte_level:
            return self._characters.push(self._vocabulary.data(token))
        if (byte := self._vocabulary.byte(token)) is not None:
            if not self._window:
                # This token becomes the context, so that the next one keeps its space.
                self._advance([token])
                if byte.isascii():
                    return self._window_text
            return self._characters.push(byte)
        before = self._characters.finish()
        self._held.append(token)
        text = self._added(self._held)
        if text.endswith(REPLACEMENT) and len(self._held) < _MAX_HELD:
            return before
        self._advance(self._held)
        self._held = []
        return before + text

    def _added(self, tokens: list[int]) -> str:
        """The text that tokens add to the window's text."""
        return self._decode([*self._window, *tokens])[len(self._window_text) :]

    def _advance(self, tokens: list[int]) -> None:
        self._window = [*self._window, *tokens][-_CONTEXT:]
        self._window_text = self._decode(self._window)

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids) if ids else ""


class _Characters:
    """Decodes bytes of UTF-8 one by one.

    Invalid bytes become as many replacement characters as the tokenizer makes of them: with byte-level tokens one for
    each beginning of a character, with byte tokens one for each byte.
    """

    def __init__(self, by_character: bool) -> None:
        self._errors = "replace" if by_character else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        # Number of replacement characters in the context's text for an incomplete character at its end.
        self._before = 0

    def begin(self, data: bytes) -> None:
        """Take the bytes of the context, of which only an incomplete character matters."""
        self._decoder.decode(data)
        incomplete = len(self._decoder.getstate()[0])
        self._before = min(1, incomplete) if self._errors == "replace" else incomplete

    def push(self, data: bytes) -> str:
        return self._clean(self._decoder.decode(data))

    def finish(self) -> str:
        """The replacement of an incomplete character; the next bytes begin a new character."""
        text = self._clean(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    def _clean(self, text: str) -> str:
        if not text:
            return text
        if self._errors == "surrogateescape" and not text.isascii():
            text = "".join(REPLACEMENT if "\udc80" <= character <= "\udcff" else character for character in text)
        for _ in range(self._before):
            # The character was not completed: the context's text already has its replacement.
            text = text.removeprefix(REPLACEMENT)
        self._before = 0
        return text
