"""Models of the sizes that people serve, with random weights from configs alone: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedModel

_AUTO_CLASSES: dict[str, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "text_embedding": AutoModel,
}


@dataclass(frozen=True)
class ModelSize:
    """A model's sizes, and what is done with it.

    Attributes:
        config: beside the sizes.
    """

    model_type: str
    task: str
    hidden: int
    layers: int
    heads: int
    config: dict[str, Any] = field(default_factory=dict)

    def make(self, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
        """A model in evaluation mode."""
        torch.manual_seed(0)
        with device:
            model: PreTrainedModel = _AUTO_CLASSES[self.task].from_config(AutoConfig.for_model(**self.settings)).eval()
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(dtype)
        return model

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the config."""
        if self.model_type == "distilbert":
            sizes = {"dim": self.hidden, "n_layers": self.layers, "n_heads": self.heads, "hidden_dim": 4 * self.hidden}
        else:
            sizes = {
                "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
                "intermediate_size": 4 * self.hidden,
            }  # fmt: skip
        return {"model_type": self.model_type, "num_labels": 2, **sizes, **self.config}

    def count_flops(self, lengths: list[int]) -> float:
        """Floating-point operations of the layers for texts of these lengths in tokens; heads and norms are left out.

        A linear layer takes 2 * inputs * outputs for each token: 12 hidden^2 weights a layer. Attention takes
        4 * hidden * length for each token: the products of queries with keys, and of scores with values.
        """
        tokens = sum(lengths)
        linear = 2 * 12 * self.hidden**2 * tokens
        attention = 4 * self.hidden * sum(length**2 for length in lengths)
        return float(self.layers * (linear + attention))


BERT_BASE = ModelSize("bert", "sequence_classification", 768, 12, 12)
DISTILBERT = ModelSize("distilbert", "sequence_classification", 768, 6, 12)
MINILM = ModelSize("bert", "text_embedding", 384, 6, 12)


def shrink(size: ModelSize) -> ModelSize:
    """A small one of the same kind, for a rehearsal on a CPU."""
    return ModelSize(size.model_type, size.task, 64, 2, 2, {"vocab_size": 2000})
