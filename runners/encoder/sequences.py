"""A text as the model reads it: in one sequence of tokens, or in several whose scores are put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tokens of a text come from.

    Attributes:
        text: the text as it was given, or its words; of a pair the second.
        spans: int64 [tokens, 2], where each token starts and ends: code points of the text, or positions of its words.
        special: bool [tokens], whether the tokenizer has added it, as [CLS]; or it is of a pair's first text.
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


@dataclass(slots=True)
class Reading:
    """One text on its way through the model.

    Attributes:
        text: the text as far as the model reads it.
        sequences: what the model computes, each by itself.
        own: bool [tokens] for each sequence that is a window of the text: the tokens whose scores are taken from it.
        left_out: how many tokens of the text are not read; 0 unless they were to be counted.
    """

    text: TokenizedText
    sequences: Sequence[TokenizedText]
    own: Sequence[NDArray[np.bool_]] = ()
    left_out: int = 0
    _scores: list[NDArray[Any] | None] = field(init=False)
    _missing: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self._scores = [None] * len(self.sequences)
        self._missing = {*range(len(self.sequences))}

    @property
    def tokens(self) -> int:
        """How many the model computes."""
        return sum(len(sequence.input_ids) for sequence in self.sequences)

    def keep(self, wanted: Callable[[TokenizedText, NDArray[np.bool_]], bool]) -> Reading:
        """The reading with only those windows, by their tokens and which of them are their own."""
        pairs = [pair for pair in zip(self.sequences, self.own, strict=True) if wanted(*pair)]
        return Reading(self.text, [window for window, _ in pairs], [own for _, own in pairs], self.left_out)

    def accept(self, part: int, scores: NDArray[Any]) -> list[NDArray[Any]] | None:
        """Take the scores of a sequence; those of all once there are all.

        A batch that failed may be run again, and then its scores come twice.
        """
        self._scores[part] = scores
        # One operation, since two threads may run parts of one text.
        self._missing.discard(part)
        if self._missing:
            return None
        return [each for each in self._scores if each is not None]


def find_carrying_on(words: NDArray[np.int64], special: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which tokens are of the same word as the token before, by the words' positions: bool [tokens]."""
    continues = np.zeros(len(words), dtype=bool)
    continues[1:] = (words[1:] == words[:-1]) & ~special[1:] & ~special[:-1]
    return continues


def join_windows(windows: Sequence[TokenizedText], special: Sequence[NDArray[np.bool_]], stride: int) -> Reading:
    """The text that windows are of, each token from one of them.

    Of the `stride` tokens that two windows share each gives the half that it sees more around.

    Args:
        special: bool [tokens] of each window, whether the tokenizer has added it; those before the text are the first
            window's, those after it the last one's.
    """
    own = []
    for number, added in enumerate(special):
        places = np.flatnonzero(~added)
        start = places[stride // 2] if number else 0
        end = places[len(places) - (stride - stride // 2) - 1] + 1 if number < len(special) - 1 else len(added)
        share = np.zeros(len(added), dtype=bool)
        share[start:end] = True
        own.append(share)

    def join(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([array[share] for array, share in zip(arrays, own, strict=True)])

    offsets = [window.offsets for window in windows if window.offsets is not None]
    sources = [window.source for window in windows if window.source is not None]
    source = None
    if sources:
        special_ones, spans = join([each.special for each in sources]), join([each.spans for each in sources])
        continues = join([each.continues for each in sources])
        if sources[0].split:
            # A window does not know what word its first token carries on.
            continues = find_carrying_on(spans[:, 0], special_ones)
        source = replace(sources[0], spans=spans, special=special_ones, continues=continues)
    whole = TokenizedText(
        join([window.input_ids for window in windows]),
        join([window.token_type_ids for window in windows]),
        join(offsets) if offsets else None,
        truncated=False,
        source=source,
    )
    return Reading(whole, windows, own)
