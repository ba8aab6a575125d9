"""Token ids to text as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

# So many tokens before the first one decide, with SentencePiece, whether a space stands between.
_CONTEXT = 6
# What bytes that are no character yet (or never) are decoded to.
_REPLACEMENT = "\ufffd"


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    """The text of tokens, as it is: the clean-up of spaces of some tokenizers would change text already sent."""
    text = tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


class TextStream:
    """The text of one sequence of tokens.

    A token's text depends on those before it (a space, the rest of a character), so a window is decoded with and
    without the new tokens, as vLLM and TGI do.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: Sequence[int], stop: Sequence[str]) -> None:
        """
        Args:
            context: the tokens that the sequence continues, if any.
            stop: strings that end the text; none may be empty.
        """
        self._tokenizer = tokenizer
        self._ids = list(context[-_CONTEXT:])
        self._window_start = 0
        self._read = len(self._ids)
        self._read_text = decode(tokenizer, self._ids)
        self._stop = stop
        self._held = ""

    def push(self, token: int) -> tuple[str, bool]:
        """Take the next token.

        Returns:
            The text that is certain now, and whether a stop string has come, which ends the text.
        """
        self._ids.append(token)
        text = decode(self._tokenizer, self._ids[self._window_start :])
        if len(text) <= len(self._read_text) or text.endswith(_REPLACEMENT):
            return "", False
        added = text[len(self._read_text) :]
        self._window_start, self._read = self._read, len(self._ids)
        self._read_text = decode(self._tokenizer, self._ids[self._window_start :])
        return self._release(added)

    def finish(self) -> str:
        """What is left of the text; no more tokens come."""
        text = decode(self._tokenizer, self._ids[self._window_start :])
        released, stopped = self._release(text[len(self._read_text) :])
        return released if stopped else released + self._held

    def _release(self, added: str) -> tuple[str, bool]:
        text = self._held + added
        found = [start for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
