"""Tiny models of the families with the forward pass that the server chooses for them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, PreTrainedModel

from runners.encoder.forward import Forward, ModelInputs, TokenSelection
from runners.encoder.forward_selection import select_forward
from runners.encoder.pooled_head import TokenPooling
from runners.encoder.probe import Probe
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks.sparse_pooling import SparsePooling
from tests.families import AUTO_CLASSES

ROWS = {
    "fill_mask": TokenSelection.MASKS,
    "sequence_classification": TokenSelection.FIRST,
    "sparse_embedding": TokenSelection.POOLED,
    "text_embedding": TokenSelection.ALL,
    "token_classification": TokenSelection.ALL,
}
PROBE_LENGTHS = (7, 60, 21, 2)
MAX_BATCH_TOKENS = 1536


class ForwardCase:
    """A model for a task, as the server runs it and as `transformers` does."""

    def __init__(
        self,
        folder: Path,
        task: str,
        device: str = "cpu",
        dtype: str = "float32",
        pooling: TokenPooling | None = None,
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.mask: int = tokenizer.mask_token_id
        self.task = task
        self.reference = AUTO_CLASSES[task].from_pretrained(folder).eval().to(device, getattr(torch, dtype))
        self.model: PreTrainedModel = (
            AUTO_CLASSES[task].from_pretrained(folder).eval().to(device, getattr(torch, dtype))
        )
        names = {*inspect.signature(self.model.forward).parameters} & {*tokenizer.model_input_names}
        if task == "sparse_embedding":
            pooling = pooling or SparsePooling()
        padding = self.model.config.pad_token_id or 0
        self.inputs = ModelInputs(self.model, frozenset(names), ROWS[task], self.mask, padding, pooling)
        self._pooling = pooling
        self.forward: Forward
        self.forward, self.reason = select_forward(self.probe(), tokenizer.padding_side)

    def probe(self) -> Probe:
        ordinary_ids = np.arange(10, self.model.config.vocab_size)
        return Probe(self.inputs, self.texts(PROBE_LENGTHS, 0), ordinary_ids, MAX_BATCH_TOKENS)

    def texts(self, lengths: Sequence[int], seed: int) -> list[TokenizedText]:
        """Random token ids with a mask in every 50."""
        random = np.random.default_rng(seed)
        texts = []
        for length in lengths:
            ids = random.integers(10, self.model.config.vocab_size, length)
            ids[random.integers(0, length, 1 + length // 50)] = self.mask
            texts.append(TokenizedText(ids, np.zeros_like(ids), None, False))
        return texts

    @torch.inference_mode()
    def expected(self, text: TokenizedText) -> torch.Tensor:
        """What the stock model says of the text alone: [rows, classes]."""
        output = self.reference(torch.from_numpy(text.input_ids)[None].to(self.reference.device))
        rows: torch.Tensor = output.last_hidden_state[0] if self.task == "text_embedding" else output.logits[0]
        if self._pooling is not None:
            rows = self._pooling.finish(self._pooling.add(None, rows))
        if self.task == "fill_mask":
            rows = rows[torch.from_numpy(text.input_ids == self.mask)]
        return rows.reshape(-1, rows.shape[-1]).cpu()


@torch.inference_mode()
def run(forward: Forward, texts: list[TokenizedText]) -> list[torch.Tensor]:
    """What a forward pass says of each text: [rows, classes]."""
    rows, counts = forward.run(texts)
    return list(torch.split(rows.cpu(), counts))
