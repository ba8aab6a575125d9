"""A text as the model computes it: one sequence of tokens, or several whose scores are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Where the tokens of a text are in the text.

    Attributes:
        text: the text, or the words that the caller has split it into; of a pair the second text.
        spans: int64 [tokens, 2], start and end of each token: code points of the text, or positions of its words.
        special: bool [tokens], True for tokens that the tokenizer has added, as [CLS], and for a pair's first text.
        continues: bool [tokens], True for tokens that continue the word of the token before them.
    """

    text: str | tuple[str, ...]
    spans: NDArray[np.int64]
    special: NDArray[np.bool_]
    continues: NDArray[np.bool_]

    @property
    def is_split(self) -> bool:
        """Whether the caller has split the text into words."""
        return not isinstance(self.text, str)

    def cut(self, start: int, end: int) -> str:
        """The text from `start` to `end`; words are joined by spaces."""
        piece = self.text[start:end]
        return piece if isinstance(piece, str) else " ".join(piece)


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """One sequence of tokens for the model.

    Attributes:
        input_ids: int64 [tokens].
        token_type_ids: int64 [tokens].
        offsets: int64 [tokens, 2], start and end of each token in its text; None unless they are needed.
        truncated: whether tokens of the text are left out.
        token_spans: where the tokens are in the text; None unless the answer needs it.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    offsets: NDArray[np.int64] | None
    truncated: bool
    token_spans: TokenSpans | None = None


@dataclass(slots=True)
class EncodedText:
    """One text on its way through the model.

    A text has several sequences if it is read in windows, or paired with several labels.

    Attributes:
        text: all tokens of the text that the model reads.
        sequences: the sequences that the model computes; each is an entry of the queue.
        kept_tokens: bool [tokens] for each window: True for the tokens whose scores are taken from this window. Empty
            if the sequences are no windows of one text.
        truncated_tokens: how many tokens the model does not read; 0 unless the request counts them.
    """

    text: TokenizedText
    sequences: Sequence[TokenizedText]
    kept_tokens: Sequence[NDArray[np.bool_]] = ()
    truncated_tokens: int = 0
    _scores: list[NDArray[Any] | None] = field(init=False)
    _missing: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._scores = [None] * len(self.sequences)
        self._missing = {*range(len(self.sequences))}

    @property
    def tokens(self) -> int:
        """How many tokens the model computes, those of all sequences."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    def filter_windows(self, is_wanted: Callable[[TokenizedText, NDArray[np.bool_]], bool]) -> EncodedText:
        """The same text with some of its windows.

        Args:
            is_wanted: is given a window and its kept tokens.
        """
        pairs = [pair for pair in zip(self.sequences, self.kept_tokens, strict=True) if is_wanted(*pair)]
        return replace(self, sequences=[window for window, _ in pairs], kept_tokens=[kept for _, kept in pairs])

    def add_scores(self, part: int, scores: NDArray[Any]) -> list[NDArray[Any]] | None:
        """Store the scores of one sequence.

        A batch that has failed may be run again; then the scores of a sequence are added twice.

        Args:
            part: position of the sequence.

        Returns:
            The scores of all sequences, in order, once there are all; else None.
        """
        self._scores[part] = scores
        # One atomic operation, since two threads may run sequences of one text.
        self._missing.discard(part)
        if self._missing:
            return None
        return [each for each in self._scores if each is not None]


def find_word_continuations(words: NDArray[np.int64], special: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens continue the word of the token before them: bool [tokens].

    Args:
        words: int64 [tokens], position of each token's word.
        special: bool [tokens], special tokens; they are part of no word.
    """
    continues = np.zeros(len(words), dtype=bool)
    continues[1:] = (words[1:] == words[:-1]) & ~special[1:] & ~special[:-1]
    return continues


def join_windows(windows: Sequence[TokenizedText], special: Sequence[NDArray[np.bool_]], stride: int) -> EncodedText:
    """The text that overlapping windows were cut from; the scores of each token come from one window.

    Two neighbouring windows share `stride` tokens. Each gives the scores of the half that has more context in it.

    Args:
        special: bool [tokens] of each window, True for the tokens that the tokenizer has added. Those before the text
            are taken from the first window, those after it from the last.
        stride: how many tokens neighbouring windows share.
    """
    kept_tokens = []
    for number, added in enumerate(special):
        places = np.flatnonzero(~added)
        start = places[stride // 2] if number else 0
        end = places[len(places) - (stride - stride // 2) - 1] + 1 if number < len(special) - 1 else len(added)
        kept = np.zeros(len(added), dtype=bool)
        kept[start:end] = True
        kept_tokens.append(kept)
    offsets = [window.offsets for window in windows if window.offsets is not None]
    whole = TokenizedText(
        _join_kept([window.input_ids for window in windows], kept_tokens),
        _join_kept([window.token_type_ids for window in windows], kept_tokens),
        _join_kept(offsets, kept_tokens) if offsets else None,
        truncated=False,
        token_spans=_join_spans([window.token_spans for window in windows], kept_tokens),
    )
    return EncodedText(whole, windows, kept_tokens)


def _join_spans(windows: Sequence[TokenSpans | None], kept_tokens: Sequence[NDArray[np.bool_]]) -> TokenSpans | None:
    parts = [window for window in windows if window is not None]
    if not parts:
        return None
    special = _join_kept([part.special for part in parts], kept_tokens)
    spans = _join_kept([part.spans for part in parts], kept_tokens)
    continues = _join_kept([part.continues for part in parts], kept_tokens)
    if parts[0].is_split:
        # A window does not know whether its first token continues the word of the window before.
        continues = find_word_continuations(spans[:, 0], special)
    return replace(parts[0], spans=spans, special=special, continues=continues)


def _join_kept(arrays: Sequence[NDArray[Any]], kept_tokens: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    """The kept rows of all windows: [tokens, ...] each, one after another."""
    return np.concatenate([array[kept] for array, kept in zip(arrays, kept_tokens, strict=True)])
