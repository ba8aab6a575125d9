"""Seeded models with the heads and widths that kernels are made for, from configs alone: no file is read."""

from __future__ import annotations

import copy
import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from tests.model_cases import ModelCase

AUTO_CLASSES: dict[str, Any] = {
    "fill_mask": AutoModelForMaskedLM,
    "sequence_classification": AutoModelForSequenceClassification,
    "text_embedding": AutoModel,
    "token_classification": AutoModelForTokenClassification,
}
DTYPES = ("float32", "float16", "bfloat16")
# The id of the mask token, which no other token of the texts has.
MASK = 4
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_DISTILBERT = {"dim": "hidden_size", "hidden_dim": "intermediate_size", "n_layers": "num_hidden_layers",
               "n_heads": "num_attention_heads"}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model.

    Attributes:
        longest: tokens of the longest text.
        max_batch_tokens: budget of a batch.
    """

    hidden: int
    layers: int
    vocabulary: int
    longest: int
    max_batch_tokens: int

    @classmethod
    def of(cls, device: torch.device) -> Sizes:
        """As wide as BERT-base on a GPU; small for a rehearsal on a CPU."""
        if device.type == "cuda":
            return cls(768, 3, 30_522, 511, 16_384)
        return cls(128, 3, 1_000, 140, 1_536)


@dataclass(frozen=True)
class Family:
    """A type of models.

    Attributes:
        head: dimensions of an attention head.
        tasks: those that the family has.
    """

    model_type: str
    head: int = 64
    config: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = tuple(AUTO_CLASSES)

    def make(self, task: str, sizes: Sizes, **config: Any) -> PreTrainedModel:
        """A model in float32 on the CPU."""
        torch.manual_seed(sum(map(ord, self.model_type + task)))
        heads = sizes.hidden // self.head
        named = {
            "hidden_size": sizes.hidden,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * sizes.hidden,
        }
        if self.model_type == "distilbert":
            named = {name: named[usual] for name, usual in _DISTILBERT.items()}
        full = AutoConfig.for_model(
            self.model_type,
            **named | {
                "vocab_size": sizes.vocabulary,
                "pad_token_id": 0,
                "max_position_embeddings": 514,
                # Larger than the usual 0.02, so that texts have other answers; larger still, rounding has them too.
                "initializer_range": 0.03,
                "num_labels": 5,
            } | self.config | config,
        )  # fmt: skip
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(full).eval()
        return model


FAMILIES = {
    "bert": Family("bert"),
    "roberta": Family("roberta", config={"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": Family("distilbert"),
    "modernbert": Family(
        "modernbert", config={"local_attention": 128, "cls_token_id": 5, "sep_token_id": 6, "bos_token_id": 5, "eos_token_id": 6}
    ),
    "mpnet": Family("mpnet", config={"pad_token_id": 1}),
    "deberta-v2": Family(
        "deberta-v2",
        config={"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
                "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True},
    ),
    # Causal, with heads that share keys and values.
    "qwen3": Family(
        "qwen3", config={"head_dim": 64, "num_key_value_heads": 2, "tie_word_embeddings": True},
        tasks=("text_embedding", "token_classification"),
    ),
    # Heads of 32 as MiniLM's, and of 20, which no kernel for multiples of 8 takes.
    "bert-32": Family("bert", head=32, tasks=("text_embedding",)),
    "bert-20": Family("bert", head=20, config={"hidden_size": 160, "num_attention_heads": 8}, tasks=("text_embedding",)),
}  # fmt: skip


@functools.lru_cache(maxsize=1)
def make_reference(family: str, task: str, sizes: Sizes) -> PreTrainedModel:
    """The stock model in float32 on the CPU. The tests of a family and a task follow each other."""
    return FAMILIES[family].make(task, sizes)


def make_case(family: str, task: str, dtype: str, device: torch.device) -> ModelCase:
    """The model in a dtype on a device, beside the stock model in float32 on the CPU."""
    sizes = Sizes.of(device)
    reference = make_reference(family, task, sizes)
    model: PreTrainedModel = copy.deepcopy(reference).to(device, getattr(torch, dtype))  # type: ignore[arg-type]
    names = frozenset({*inspect.signature(model.forward).parameters} & _INPUTS)
    return ModelCase(model, reference, task, names, MASK, max_batch_tokens=sizes.max_batch_tokens)
