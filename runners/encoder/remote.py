"""The forward pass of a batch on another server: tensors there, logits back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.core.errors import PredictorAnswerError
from runners.core.predictor import Predictor
from runners.encoder.forward import Forward, Rows, count_rows, group_by_length, pad
from runners.encoder.queue import BatchMode
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks import Head


class RemoteForward(Forward):
    """A batch as a rectangle that the predictor runs; what it answers is cut to the rows that the head reads."""

    name = "on the predictor"
    mode = BatchMode.PADDED
    # The predictor computes one batch while the next is on its way.
    at_once = 2

    def __init__(self, predictor: Predictor, head: Head, inputs: frozenset[str], padding_id: int) -> None:
        """
        Args:
            head: what reads the answers.
            inputs: which tensors the predictor is given.
            padding_id: the token that padding is made of.
        """
        self._predictor = predictor
        self._head = head
        self._inputs = inputs
        self._padding_id = padding_id
        # Padding needs a mask, and is always on the right here. Models whose tokenizer pads on the left read the last
        # column, which must be a token. Both kinds get texts of one length at a time.
        self._pads = "attention_mask" in inputs and head.tokenizer.padding_side == "right"

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """As `Forward.run`; vectors that the predictor has pooled are [texts, 1, dimensions].

        Raises:
            PredictorError: there is no answer, or it is not the model's.
        """
        counts = count_rows(texts, self._head.rows, self._head.tokenizer.mask_token_id)
        if self._pads:
            return _to_tensor(self._ask(texts, counts)), counts
        parts: dict[int, NDArray[np.float32]] = {}
        for alike in group_by_length(texts):
            row_counts = [counts[index] for index in alike]
            answer = self._ask([texts[index] for index in alike], row_counts)
            bounds = np.cumsum(row_counts)[:-1] if answer.ndim == 2 else len(alike)
            parts.update(zip(alike, np.split(answer, bounds), strict=True))
        return _to_tensor(np.concatenate([parts[index] for index in range(len(texts))])), counts

    def _ask(self, texts: Sequence[TokenizedText], counts: list[int]) -> NDArray[np.float32]:
        arrays = pad(texts, self._padding_id, "right")
        answer = self._predictor.infer({name: array for name, array in arrays.items() if name in self._inputs})
        real = arrays["attention_mask"].astype(bool)
        count, longest = real.shape
        columns = answer.shape[1] if answer.ndim == 3 else 0
        fits = answer.shape[:1] == (count,) and answer.shape[-1:] == (self._head.width,)
        match self._head.rows:
            case Rows.FIRST if answer.ndim == 2 and fits:
                return answer
            case Rows.ALL if answer.shape in [(count, width) for width in self._head.pooled_widths]:
                return answer[:, None]
            case Rows.ALL if columns >= longest and fits:
                return np.asarray(answer[:, :longest][real])
            case Rows.MASKS if columns >= longest and fits:
                masks = real & (arrays["input_ids"] == self._head.tokenizer.mask_token_id)
                return np.asarray(answer[:, :longest][masks])
            case Rows.MASKS if columns == max(counts) and fits:
                # This server itself answers with the masks alone, texts with fewer of them filled up.
                return answer[np.arange(columns) < np.array(counts)[:, None]]
        raise PredictorAnswerError(
            f"the predictor answered with the shape {list(answer.shape)}; for {count} texts of up to {longest} tokens "
            f"the model's is {self._expected(count, longest, max(counts))}"
        )

    def _expected(self, texts: int, tokens: int, masks: int) -> str:
        width = self._head.width
        pooled = [f"[{texts}, {each}]" for each in self._head.pooled_widths]
        by_token = f"[{texts}, {tokens}, {width}]"
        match self._head.rows:
            case Rows.FIRST:
                return f"[{texts}, {width}]"
            case Rows.MASKS:
                return f"{by_token}, or [{texts}, {masks}, {width}] for the masks alone"
            case Rows.ALL if pooled:
                return f"{by_token}, or pooled {' or '.join(pooled)}"
        return by_token


def _to_tensor(array: NDArray[np.float32]) -> Tensor:
    # What lies in a received buffer cannot be written to, which torch wants of everything.
    return torch.from_numpy(np.require(array, requirements="W"))
