"""Token ids to text as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

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
        self._stop = stop
        self._include_stop = include_stop
        self._longest = max(map(len, stop), default=0)
        # What may be the beginning of a stop string, of which so much has been given out.
        self._tail = ""
        self._released = 0

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
        return (self._tail + self._detokenizer.finish())[self._released :]

    def _release(self, added: str, may_stop: bool) -> tuple[str, str | None]:
        if not self._stop:
            return added, None
        text, released = self._tail + added, self._released
        if added and may_stop:
            # Of those that this token completes the one that ends first, as in vLLM.
            new = len(self._tail)
            ends = [
                (start + len(stop), stop)
                for stop in self._stop
                if (start := text.find(stop, max(0, new - len(stop) + 1))) >= 0
            ]
            if ends:
                end, stop = min(ends, key=lambda found: found[0])
                return text[released : end if self._include_stop else end - len(stop)], stop
        certain = len(text) if self._include_stop else len(text) - self._held(text)
        # Later tokens may complete what begins so far back.
        start = max(0, min(certain, len(text) - self._longest + 1))
        self._tail, self._released = text[start:], certain - start
        return text[released:certain], None

    def _held(self, text: str) -> int:
        """How many characters at the end of the text are the beginning of a stop string."""
        return max(_overlap(text, stop) for stop in self._stop)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
