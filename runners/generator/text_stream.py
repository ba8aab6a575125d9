"""Token ids to text as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from runners.generator.detokenizer import Detokenizer
from runners.generator.vocabulary import Vocabulary


class TextStream:
    """The text of one sequence of tokens, which ends with the first stop string that is complete."""

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
            context: the tokens that the sequence continues, if any.
            stop: strings that end the text; none may be empty.
            include_stop: keep the stop string in the text.
        """
        self._detokenizer = Detokenizer(vocabulary, context, skip_special_tokens)
        self._searches = [_Search(string) for string in stop]
        self._include_stop = include_stop
        # The end of the text, which may be the beginning of a stop string and is not given out yet.
        self._held = ""

    @property
    def length(self) -> int:
        """Characters that the tokens have so far, without those of an incomplete one."""
        return self._detokenizer.length

    def push(self, token: int, may_stop: bool = True) -> tuple[str, str | None]:
        """Take the next token.

        Args:
            may_stop: whether a stop string that this token completes ends the text.

        Returns:
            The text that is certain now, and the stop string that has come, which ends the text.
        """
        return self._release(self._detokenizer.push(token), may_stop)

    def finish(self) -> str:
        """What is left of the text; no more tokens come."""
        return self._held + self._detokenizer.finish()

    def _release(self, added: str, may_stop: bool) -> tuple[str, str | None]:
        if not self._searches:
            return added, None
        before = len(self._held)
        text = self._held + added
        # Of those that this token completes the one that ends first, as in vLLM.
        found = min(
            ((end, search.string) for search in self._searches if (end := search.push(added)) and may_stop),
            key=lambda pair: pair[0],
            default=None,
        )
        if found is not None:
            end, stop = found
            return text[: before + end if self._include_stop else before + end - len(stop)], stop
        held = 0 if self._include_stop else max(search.matched for search in self._searches)
        certain = len(text) - held
        self._held = text[certain:]
        return text[:certain], None


class _Search:
    """Finds a string in a text that comes in pieces, by Knuth, Morris and Pratt: in constant time a character.

    Attributes:
        matched: how many characters at the end of the text are the beginning of the string, and not all of it.
    """

    def __init__(self, string: str) -> None:
        self.string = string
        self.matched = 0
        self._shorter = _find_shorter(string)

    def push(self, text: str) -> int:
        """Go on with a piece of text; after how many of its characters the string is first complete, or 0."""
        first = 0
        for end, character in enumerate(text, 1):
            self.matched = _match(self.string, self._shorter, self.matched, character)
            if self.matched == len(self.string):
                first = first or end
                self.matched = self._shorter[self.matched]
        return first


def _match(string: str, shorter: Sequence[int], matched: int, character: str) -> int:
    """How many characters match once another one has come."""
    while matched and string[matched] != character:
        matched = shorter[matched]
    return matched + (string[matched] == character)


# The choices of a request have the same stop strings.
@functools.lru_cache(maxsize=256)
def _find_shorter(string: str) -> Sequence[int]:
    """By characters that match, the longest beginning of the string that is shorter and at their end."""
    shorter = [0, 0]
    for character in string[1:]:
        shorter.append(_match(string, shorter, shorter[-1], character))
    return shorter
