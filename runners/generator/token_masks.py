"""Masks of tokens that the rows of a batch must not generate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from runners.core.errors import InputError
from runners.generator.constraints import fill_masks
from runners.generator.sequence_errors import as_runner_error

if TYPE_CHECKING:
    from runners.generator.sampler import SampledRow, Settings


class ConstraintMasks:
    """Applies the constraints of rows to their logits."""

    def __init__(self, rows: Sequence[SampledRow]) -> None:
        self._rows = [(index, row, row.matcher) for index, row in enumerate(rows) if row.matcher is not None]

    def apply(self, logits: Tensor) -> Tensor:
        """The logits, [rows, vocabulary], with -inf for tokens that a row's constraint does not allow next.

        A row whose constraint allows no token gets an error.
        """
        rows = [(index, row, matcher) for index, row, matcher in self._rows if row.error is None]
        if not rows:
            return logits
        bits = fill_masks([matcher for *_, matcher in rows])
        allowed = np.unpackbits(bits.view(np.uint8), axis=1, count=logits.shape[1], bitorder="little")
        for allowed_tokens, (_, row, matcher) in zip(allowed, rows, strict=True):
            row.error = matcher.error
            if row.error is None and not allowed_tokens.any():
                row.error = InputError("no token of this model fits the constraint")
        indices = [index for index, *_ in rows]
        forbidden = torch.from_numpy(allowed == 0).to(logits.device)
        logits = logits.clone()
        logits[indices] = logits[indices].masked_fill(forbidden, -torch.inf)
        return logits

    def consume(self, tokens: Sequence[int]) -> None:
        """Advance the constraints by the tokens of all rows; an error ends its row only."""
        for index, row, matcher in self._rows:
            if row.error is None:
                try:
                    matcher.consume(tokens[index])
                except Exception as error:
                    row.error = as_runner_error(error)


class Bans:
    """Applies `allowed`, `bad_words` and `min_tokens` of rows to their logits.

    Attributes:
        rows: the indices of rows for which tokens are forbidden.
    """

    def __init__(self, rows: Sequence[SampledRow], vocabulary: int, device: torch.device) -> None:
        self._device = device
        limited = [(index, row) for index, row in enumerate(rows) if row.settings.allowed is not None]
        self._limited = torch.tensor([index for index, _ in limited], dtype=torch.long, device=device)
        self._outside = torch.ones(len(limited), vocabulary, dtype=torch.bool, device=device)
        for position, (_, row) in enumerate(limited):
            self._outside[position, row.named.allowed.to(device)] = False
        self._always = self._pairs(
            [(index, word[0]) for index, row in enumerate(rows) for word in row.settings.bad_words if len(word) == 1]
        )
        self._words = [(index, row, _by_second_last(row.settings)) for index, row in enumerate(rows)]
        self._words = [(index, row, words) for index, row, words in self._words if words]
        self._starting = [(index, row) for index, row in enumerate(rows) if row.settings.ends and _is_starting(row)]
        self._ends = self._end_pairs()
        self.rows = sorted(
            {index for index, _ in (*limited, *self._starting)}
            | {index for index, row in enumerate(rows) if row.settings.bad_words}
        )

    def apply(self, logits: Tensor) -> None:
        """Set the logits of forbidden tokens to -inf, in place; [rows, vocabulary]."""
        if len(self._limited):
            logits[self._limited] = logits[self._limited].masked_fill(self._outside, -torch.inf)
        if self._always is not None:
            logits[self._always] = -torch.inf
        completing = [
            (index, word[-1])
            for index, row, words in self._words
            if row.output
            for word in words.get(row.output[-1], ())
            if row.output[1 - len(word) :] == list(word[:-1])
        ]
        if completing:
            logits[self._pairs(completing)] = -torch.inf
        if self._ends is not None:
            if not all(_is_starting(row) for _, row in self._starting):
                self._starting = [(index, row) for index, row in self._starting if _is_starting(row)]
                self._ends = self._end_pairs()
            if self._ends is not None:
                logits[self._ends] = -torch.inf

    def allow_only(self, logits: Tensor, ids: Tensor) -> None:
        """Set the logits of all other tokens to -inf, in place; [vocabulary]."""
        kept = ids.to(self._device)
        values = logits[kept]
        logits.fill_(-torch.inf)
        logits[kept] = values

    def _end_pairs(self) -> tuple[Tensor, Tensor] | None:
        if not self._starting:
            return None
        pairs = index_pairs([index for index, _ in self._starting], [row.named.ends for _, row in self._starting])
        return pairs[0].to(self._device), pairs[1].to(self._device)

    def _pairs(self, pairs: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor] | None:
        """Rows and tokens as an index of logits; None for no pairs."""
        if not pairs:
            return None
        rows, tokens = zip(*pairs, strict=True)
        return torch.tensor(rows, device=self._device), torch.tensor(tokens, device=self._device)


def index_pairs(rows: Sequence[int], tokens: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """An index of logits, [pairs] each, from rows and the tokens of each row."""
    return torch.tensor(rows).repeat_interleave(torch.tensor([len(row_tokens) for row_tokens in tokens])), torch.cat(
        [*tokens]
    )


def _is_starting(row: SampledRow) -> bool:
    return len(row.output) < row.settings.min_tokens


def _by_second_last(settings: Settings) -> dict[int, list[tuple[int, ...]]]:
    """Words of several tokens by their second last token."""
    words = defaultdict(list)
    for word in settings.bad_words:
        if len(word) > 1:
            words[word[-2]].append(word)
    return dict(words)
