"""Which rows of a batch belong to which text, and reductions of each text's rows to one row.

On a GPU, a reduction has as many kernels for one text as for many. It waits for nothing and copies nothing to the GPU,
so that a CUDA graph can capture it. There, one thread adds up a column of a text, in the order of the rows
(aten/src/ATen/native/cuda/SegmentReduce.cu): other texts change no bit. On a CPU, where `segment_reduce` is up to ten
times slower, the texts are reduced one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from runners.encoder.transfers import upload


class Segments:
    """The rows of each text: consecutive ones, in the order of the texts.

    Attributes:
        counts: how many rows each text has.
    """

    def __init__(self, counts: Sequence[int], device: torch.device, offsets: Tensor | None = None) -> None:
        """
        Args:
            device: of the rows.
            offsets: see `offsets`. They may have more texts than `counts`, whose reductions mean nothing; these texts
                may have no rows.
        """
        self.counts = counts
        self._device = device
        if offsets is not None:
            self.offsets = offsets

    @cached_property
    def offsets(self) -> Tensor:
        """int32 or int64 [texts + 1], on the device of the rows: text i has the rows from offsets[i] to offsets[i + 1].

        Rows after the last offset belong to no text. Offsets that were not given are copied when they are first read.
        """
        return upload({"offsets": np.cumsum([0, *self.counts])}, self._device)["offsets"]

    def cut(self, start: int, first: int, counts: Sequence[int]) -> Segments:
        """The segments of some of the rows.

        Args:
            start: the first of these rows.
            first: the text that it belongs to.
            counts: how many of these rows this text and the next ones have.
        """
        offsets = self.offsets[first : first + len(counts) + 1] - start
        # The first text may begin before these rows, and the last one may end after them.
        return Segments(counts, self._device, offsets.clamp(0, sum(counts)))

    def number(self, rows: Tensor) -> Tensor:
        """The number of each row in its text, from 1: int [rows], of [rows, columns]."""
        if _is_looped(rows):
            return torch.cat([torch.arange(1, count + 1) for count in self.counts])
        numbers = torch.arange(1, rows.shape[0] + 1, dtype=self.offsets.dtype, device=rows.device)
        texts = torch.searchsorted(self.offsets[1:], numbers)
        return numbers - self.offsets[texts]

    def first(self, rows: Tensor) -> Tensor:
        """The first row of each text: [texts, columns], of [rows, columns]."""
        return rows.index_select(0, self.offsets[:-1].clamp(max=len(rows) - 1))

    def last(self, rows: Tensor) -> Tensor:
        """The last row of each text: [texts, columns], of [rows, columns]."""
        return rows.index_select(0, (self.offsets[1:] - 1).clamp(min=0))

    def mean(self, rows: Tensor) -> Tensor:
        """The mean of each text's rows: float32 [texts, columns], of [rows, columns]."""
        if _is_looped(rows):
            return torch.stack([text.mean(0, dtype=torch.float32) for text in self.split(rows)])
        return self._reduce(rows.float(), "mean")

    def sum(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """The sum of each text's rows: float32 [texts, columns], of [rows, columns].

        Args:
            weights: float32 [rows], by which the rows are multiplied.
        """
        if not _is_looped(rows):
            return self._reduce(rows.float() if weights is None else rows * weights[:, None], "sum")
        texts = self.split(rows)
        if weights is None:
            return torch.stack([text.sum(0, dtype=torch.float32) for text in texts])
        return torch.stack([weight @ text.float() for weight, text in zip(self.split(weights), texts, strict=True)])

    def max(self, rows: Tensor) -> Tensor:
        """The largest number of each column and text: [texts, columns] in the dtype of the rows, [rows, columns]."""
        if _is_looped(rows):
            return torch.stack([text.amax(0) for text in self.split(rows)])
        return self._reduce(rows, "max")

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows of each text, [rows of the text, ...] each, of [rows, ...]."""
        total = sum(self.counts)
        return (rows if total == rows.shape[0] else rows[:total]).split_with_sizes(self.counts)

    def _reduce(self, rows: Tensor, reduction: str) -> Tensor:
        # Its checks of the offsets would wait for the GPU.
        return torch.segment_reduce(rows, reduction, offsets=self.offsets, axis=0, unsafe=True)


def _is_looped(rows: Tensor) -> bool:
    """Whether these rows are reduced text by text."""
    return rows.device.type == "cpu"
