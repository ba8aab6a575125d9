"""The text of an output as its tokens come, which ends at a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from runners.generator.detokenizer import Detokenizer
from runners.generator.vocabulary import Vocabulary


class TextStream:
    """Decodes the tokens of one sequence, and holds back text that may be the beginning of a stop string."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        context: Sequence[int],
        stop: Sequence[str],
        include_stop: bool = False,
        skip_special_tokens: bool = True,
    ) -> None:
        """
        Args:
            context: the tokens before the sequence in the same text.
            stop: strings that end the text; none may be empty.
            include_stop: whether the text keeps the stop string.
        """
        self._detokenizer = Detokenizer(vocabulary, context, skip_special_tokens)
        self._searches = [_Search(string) for string in stop]
        self._include_stop = include_stop
        # The end of the text that may be the beginning of a stop string, and has not been returned yet.
        self._held = ""

    @property
    def length(self) -> int:
        """Number of characters of the tokens so far, without an incomplete one."""
        return self._detokenizer.length

    def push(self, token: int, may_stop: bool = True) -> tuple[str, str | None]:
        """Take the next token.

        Args:
            may_stop: whether a stop string that this token completes ends the text.

        Returns:
            The text that is certain now, and the stop string that ended the text, if any.
        """
        return self._release(self._detokenizer.push(token), may_stop)

    def finish(self) -> str:
        """The rest of the text after the last token."""
        return self._held + self._detokenizer.finish()

    def _release(self, added: str, may_stop: bool) -> tuple[str, str | None]:
        if not self._searches:
            return added, None
        before = len(self._held)
        text = self._held + added
        # If the token completes several stop strings, the one that ends first counts, as in vLLM.
        first_stop = min(
            ((end, search.string) for search in self._searches if (end := search.push(added)) and may_stop),
            key=lambda pair: pair[0],
            default=None,
        )
        if first_stop is not None:
            end, stop = first_stop
            return text[: before + end if self._include_stop else before + end - len(stop)], stop
        held = 0 if self._include_stop else max(search.matched for search in self._searches)
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain], None


class _Search:
    """Searches a string in a text that comes in pieces, by the algorithm of Knuth, Morris and Pratt.

    Attributes:
        matched: number of characters at the end of the text that are a proper prefix of the string.
    """

    def __init__(self, string: str) -> None:
        self.string = string
        self.matched = 0
        self._shorter = _find_shorter(string)

    def push(self, text: str) -> int:
        """Take a piece of text; returns the position in it after the first match of the string, or 0."""
        first = 0
        for end, character in enumerate(text, 1):
            self.matched = _match(self.string, self._shorter, self.matched, character)
            if self.matched == len(self.string):
                first = first or end
                self.matched = self._shorter[self.matched]
        return first


def _match(string: str, shorter: Sequence[int], matched: int, character: str) -> int:
    """Number of matching characters after one more character."""
    while matched and string[matched] != character:
        matched = shorter[matched]
    return matched + (string[matched] == character)


# The choices of a request have the same stop strings.
@functools.lru_cache(maxsize=256)
def _find_shorter(string: str) -> Sequence[int]:
    """The prefix function: for each number of matching characters, the length of their longest border."""
    shorter = [0, 0]
    for character in string[1:]:
        shorter.append(_match(string, shorter, shorter[-1], character))
    return shorter
