"""The forward pass on another server, the predictor: it gets tensors and returns logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners.core.errors import PredictorAnswerError
from runners.core.predictor import Predictor
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward, TokenSelection, count_padding, count_rows, group_by_length, pad
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks import EncoderTask


class RemoteForward(Forward):
    """Sends a batch to the predictor as a padded rectangle, and selects the token rows that the task reads."""

    name = "on the predictor"
    mode = BatchMode.PADDED

    def __init__(
        self, predictor: Predictor, encoder_task: EncoderTask, inputs: frozenset[str], padding_id: int
    ) -> None:
        """
        Args:
            encoder_task: its token selection and width say what the predictor must answer.
            inputs: names of the tensors that the predictor gets.
            padding_id: token id of the padding.
        """
        self._predictor = predictor
        self._task = encoder_task
        self._inputs = inputs
        self._padding_id = padding_id
        # Padding is on the right and needs a mask. A model whose tokenizer pads on the left reads the last column,
        # which must be a token. Without a mask, or with padding on the left, a call has texts of one length only.
        self._pads = "attention_mask" in inputs and encoder_task.tokenizer.padding_side == "right"

    def count_padding(self, texts: Sequence[TokenizedText]) -> int:
        return count_padding(texts) if self._pads else 0

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """See `Forward.run`; vectors that the predictor has pooled are float32 [texts, 1, dimensions].

        Raises:
            PredictorError: the predictor gives no answer, or one of another shape.
        """
        counts = count_rows(texts, self._task.selection, self._task.tokenizer.mask_token_id)
        if self._pads:
            return _to_tensor(self._call(texts, counts)), counts
        parts: dict[int, NDArray[np.float32]] = {}
        for group in group_by_length(texts):
            row_counts = [counts[index] for index in group]
            answer = self._call([texts[index] for index in group], row_counts)
            bounds = np.cumsum(row_counts)[:-1] if answer.ndim == 2 else len(group)
            parts.update(zip(group, np.split(answer, bounds), strict=True))
        return _to_tensor(np.concatenate([parts[index] for index in range(len(texts))])), counts

    def _call(self, texts: Sequence[TokenizedText], counts: list[int]) -> NDArray[np.float32]:
        arrays = pad(texts, self._padding_id, "right")
        answer = self._predictor.infer({name: array for name, array in arrays.items() if name in self._inputs})
        real = arrays["attention_mask"].astype(bool)
        count, longest = real.shape
        columns = answer.shape[1] if answer.ndim == 3 else 0
        fits = answer.shape[:1] == (count,) and answer.shape[-1:] == (self._task.width,)
        match self._task.selection:
            case TokenSelection.FIRST if answer.ndim == 2 and fits:
                return answer
            case TokenSelection.ALL if answer.shape in [(count, width) for width in self._task.pooled_widths]:
                return answer[:, None]
            case TokenSelection.ALL if columns >= longest and fits:
                return np.asarray(answer[:, :longest][real])
            case TokenSelection.MASKS if columns >= longest and fits:
                masks = real & (arrays["input_ids"] == self._task.tokenizer.mask_token_id)
                return np.asarray(answer[:, :longest][masks])
            case TokenSelection.MASKS if columns == max(counts) and fits:
                # This server, as a predictor, answers with the masks alone, padded to the largest number of masks.
                return answer[np.arange(columns) < np.array(counts)[:, None]]
        raise PredictorAnswerError(
            f"the predictor answered with the shape {list(answer.shape)}; for {count} texts of up to {longest} tokens "
            f"the model's is {self._describe_shape(count, longest, max(counts))}"
        )

    def _describe_shape(self, texts: int, tokens: int, masks: int) -> str:
        width = self._task.width
        pooled = [f"[{texts}, {each}]" for each in self._task.pooled_widths]
        by_token = f"[{texts}, {tokens}, {width}]"
        match self._task.selection:
            case TokenSelection.FIRST:
                return f"[{texts}, {width}]"
            case TokenSelection.MASKS:
                return f"{by_token}, or [{texts}, {masks}, {width}] for the masks alone"
            case TokenSelection.ALL if pooled:
                return f"{by_token}, or pooled {' or '.join(pooled)}"
        return by_token


def _to_tensor(array: NDArray[np.float32]) -> Tensor:
    # torch wants a writable array; a received buffer is read-only.
    return torch.from_numpy(np.require(array, requirements="W"))
