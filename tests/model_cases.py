"""A model with the forward pass that the server chooses for it, beside the stock model.

It needs no tokenizer and no library but torch and transformers, so that it also serves tests/gpu on a bare machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from runners.encoder.forward import Forward, ModelInputs, TokenSelection
from runners.encoder.forward_selection import select_forward
from runners.encoder.probe import Probe
from runners.encoder.sequences import TokenizedText

if TYPE_CHECKING:
    # A bare machine lacks what it imports.
    from runners.encoder.tasks.sparse_pooling import SparsePooling

ROWS = {
    "fill_mask": TokenSelection.MASKS,
    "sequence_classification": TokenSelection.FIRST,
    "sparse_embedding": TokenSelection.POOLED,
    "text_embedding": TokenSelection.ALL,
    "token_classification": TokenSelection.ALL,
}
PROBE_LENGTHS = (7, 60, 21, 2)
MAX_BATCH_TOKENS = 1536
# Below it are special tokens.
_FIRST_ORDINARY = 10


class ModelCase:
    """A model for a task, as the server runs it and as `transformers` does."""

    def __init__(
        self,
        model: PreTrainedModel,
        reference: PreTrainedModel,
        task: str,
        input_names: frozenset[str],
        mask: int,
        padding_side: str = "right",
        pooling: SparsePooling | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        """
        Args:
            reference: another copy of the model, which stays as it is; its device and dtype may be others.
            mask: id of the mask token.
        """
        self.model = model
        self.reference = reference
        self.task = task
        self.mask = mask
        self.max_batch_tokens = max_batch_tokens
        padding = model.config.pad_token_id or 0
        self.inputs = ModelInputs(model, input_names, ROWS[task], mask, padding, pooling)
        self._pooling = pooling
        self.forward: Forward
        self.probe_used = self.probe()
        self.forward, self.reason = select_forward(self.probe_used, padding_side)

    def probe(self) -> Probe:
        ordinary_ids = np.arange(_FIRST_ORDINARY, self.model.config.vocab_size)
        return Probe(self.inputs, self.texts(PROBE_LENGTHS, 0), ordinary_ids, self.max_batch_tokens)

    def texts(self, lengths: Sequence[int], seed: int) -> list[TokenizedText]:
        """Random token ids with a mask in every 50."""
        random = np.random.default_rng(seed)
        texts = []
        for length in lengths:
            ids = random.integers(_FIRST_ORDINARY, self.model.config.vocab_size, length)
            ids[random.integers(0, length, 1 + length // 50)] = self.mask
            texts.append(TokenizedText(ids, np.zeros_like(ids), None, False))
        return texts

    def replace(self, text: TokenizedText, seed: int) -> TokenizedText:
        """Another text of the same length, with the same masks."""
        ids = np.random.default_rng(seed).integers(_FIRST_ORDINARY, self.model.config.vocab_size, len(text.input_ids))
        ids[text.input_ids == self.mask] = self.mask
        return replace(text, input_ids=ids)

    @torch.inference_mode()
    def expected(self, text: TokenizedText) -> Tensor:
        """What the stock model says of the text alone: [rows, classes]."""
        output = self.reference(torch.from_numpy(text.input_ids)[None].to(self.reference.device))
        rows: Tensor = output.last_hidden_state[0] if self.task == "text_embedding" else output.logits[0]
        if self._pooling is not None:
            rows = pool_sparsely(rows.float(), self._pooling)
        if self.task == "fill_mask":
            rows = rows[torch.from_numpy(text.input_ids == self.mask)]
        return rows.reshape(-1, rows.shape[-1]).cpu()


def pool_sparsely(scores: Tensor, pooling: SparsePooling) -> Tensor:
    """As `SpladePooling` of sentence-transformers, of one text: [vocabulary], of [tokens, vocabulary]."""
    for _ in range(pooling.logarithms):
        scores = torch.log1p(torch.relu(scores))
    return scores.sum(0) if pooling.sums else scores.amax(0)


@torch.inference_mode()
def run(forward: Forward, texts: Sequence[TokenizedText]) -> list[Tensor]:
    """What a forward pass says of each text: [rows, classes]."""
    rows, counts = forward.run(texts)
    return list(torch.split(rows.cpu(), counts))
