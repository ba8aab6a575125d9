"""Token ids to text as they come, in whole characters: all pieces together are what the tokenizer says of all tokens.

Every token takes the same time, whatever came before it. `tokenizers`' own DecodeStream does not: tokens without text
(special tokens, bytes that are no character) stay in what it decodes at each step.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import islice

from runners.generator.vocabulary import REPLACEMENT, Vocabulary

# So many tokens before the first one decide, with SentencePiece, whether a space stands between.
_CONTEXT = 6
# What decodes to no character is held back no longer than for so many tokens; a character has four bytes at most.
_MOST_HELD = 16


class Detokenizer:
    """The text of one sequence of tokens.

    Attributes:
        length: characters so far, without those of an incomplete one.
    """

    def __init__(self, vocabulary: Vocabulary, context: Sequence[int], skip_special_tokens: bool = True) -> None:
        """
        Args:
            context: the tokens that the sequence continues; its last character may be incomplete, and then belongs to
                this sequence.
        """
        self._vocabulary = vocabulary
        self._skipped = vocabulary.special if skip_special_tokens else frozenset[int]()
        self._characters = _Characters(vocabulary.is_byte_level)
        self.length = 0
        kept = list(islice((token for token in reversed(context) if not self._is_skipped(token)), _CONTEXT))[::-1]
        if vocabulary.is_byte_level:
            self._characters.begin(b"".join(map(vocabulary.data, kept)))
            return
        data = [vocabulary.byte(token) for token in kept]
        whole = next((i for i in range(len(kept), 0, -1) if data[i - 1] is None), 0)
        # Where all are bytes, an earlier token is still context.
        self._characters.begin(b"".join(byte for byte in data[whole:] if byte is not None))
        self._window = kept[:whole] or kept[:1]
        self._window_text = self._decode(self._window)
        if whole:
            # What is incomplete at its end is to come with what completes it.
            self._window_text = self._window_text.rstrip(REPLACEMENT)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """What a token adds; nothing while a character is incomplete."""
        text = "" if self._is_skipped(token) else self._add(token)
        self.length += len(text)
        return text

    def finish(self) -> str:
        """What is left of an incomplete character; no more tokens come."""
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
                # The next token is not the first, and of the first a space may be left out.
                self._advance([token])
                if byte.isascii():
                    return self._window_text
            return self._characters.push(byte)
        before = self._characters.finish()
        self._held.append(token)
        text = self._added(self._held)
        if text.endswith(REPLACEMENT) and len(self._held) < _MOST_HELD:
            return before
        self._advance(self._held)
        self._held = []
        return before + text

    def _added(self, tokens: list[int]) -> str:
        """What tokens add to the window's text."""
        return self._decode([*self._window, *tokens])[len(self._window_text) :]

    def _advance(self, tokens: list[int]) -> None:
        self._window = [*self._window, *tokens][-_CONTEXT:]
        self._window_text = self._decode(self._window)

    def _decode(self, ids: list[int]) -> str:
        return self._vocabulary.decode(ids) if ids else ""


class _Characters:
    """Bytes to characters as they come.

    What is no UTF-8 becomes as many replacement characters as the tokenizer makes of it: with byte-level tokens one
    for each beginning of a character, with byte tokens one a byte.
    """

    def __init__(self, by_character: bool) -> None:
        self._errors = "replace" if by_character else "surrogateescape"
        self._decoder = codecs.getincrementaldecoder("utf-8")(self._errors)
        # So many replacement characters stand in the text before for what is incomplete at its end.
        self._before = 0

    def begin(self, data: bytes) -> None:
        """Take bytes before the first ones: of them only a character that is incomplete counts."""
        self._decoder.decode(data)
        incomplete = len(self._decoder.getstate()[0])
        self._before = min(1, incomplete) if self._errors == "replace" else incomplete

    def push(self, data: bytes) -> str:
        return self._clean(self._decoder.decode(data))

    def finish(self) -> str:
        """What is incomplete; what comes next begins anew."""
        text = self._clean(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    def _clean(self, text: str) -> str:
        if not text:
            return text
        if self._errors == "surrogateescape" and not text.isascii():
            text = "".join(REPLACEMENT if "\udc80" <= character <= "\udcff" else character for character in text)
        for _ in range(self._before):
            # It could not be completed.
            text = text.removeprefix(REPLACEMENT)
        self._before = 0
        return text
