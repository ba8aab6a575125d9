"""Tiny models of the families with the forward pass that the server chooses for them."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedModel

from runners.encoder.packing import PackedForward
from runners.encoder.tasks.sparse_pooling import SparsePooling
from tests.families import AUTO_CLASSES
from tests.model_cases import MAX_BATCH_TOKENS, ROWS, ModelCase, run

__all__ = ["MAX_BATCH_TOKENS", "ROWS", "ForwardCase", "attach_packed", "run"]


class ForwardCase(ModelCase):
    """A saved model of a family."""

    def __init__(
        self,
        folder: Path,
        task: str,
        device: str = "cpu",
        dtype: str = "float32",
        pooling: SparsePooling | None = None,
    ) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def load() -> PreTrainedModel:
            model: PreTrainedModel = AUTO_CLASSES[task].from_pretrained(folder).eval().to(device, getattr(torch, dtype))
            return model

        model = load()
        names = {*inspect.signature(model.forward).parameters} & {*tokenizer.model_input_names}
        if task == "sparse_embedding":
            pooling = pooling or SparsePooling()
        super().__init__(
            model, load(), task, frozenset(names), tokenizer.mask_token_id, tokenizer.padding_side, pooling
        )


def attach_packed(case: ForwardCase) -> PackedForward:
    """The packed forward pass of a model, whichever one the server has chosen on this device."""
    case.forward.detach()
    forward = PackedForward(case.inputs)
    forward.attach()
    return forward
