"""Tiny seeded models of every registered type, with weights large enough for answers to differ."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from runners.core.task import Task
from tests.architectures.configs import tiny_config
from tests.architectures.registry import Pair
from tests.architectures.vocabularies import tokenizer_of
from tests.families import TASK_CONFIG

# Types that are used with the vector of a text's last token; `modules.json` says so as sentence-transformers writes it.
LAST_TOKEN = frozenset({"gemma2", "llama", "mistral", "qwen2", "qwen3"})
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]
_SPREAD = 0.2
# Without norms what is large grows with every layer.
_SPREADS = {"mobilebert": 0.1}
_CLASSES = 5


def save_model(pair: Pair, folder: Path, **config: Any) -> None:
    """Save a model for a task with the tokenizer of its type.

    Args:
        config: what the case needs of the config beside what is tiny in it.
    """
    tokenizer = tokenizer_of(pair.tokenizer_kind)
    without_classes = (Task.FILL_MASK, Task.SPARSE_EMBEDDING, Task.TEXT_EMBEDDING)
    settings: dict[str, Any] = {} if pair.task in without_classes else {"num_labels": _CLASSES}
    if pair.task is Task.TEXT_EMBEDDING and pair.model_type == "t5gemma":
        settings["is_encoder_decoder"] = False
    full = tiny_config(pair.model_type, tokenizer, **settings | TASK_CONFIG.get(pair.task, {}) | config)
    torch.manual_seed(zlib.crc32(f"{pair.model_type} {pair.task}".encode()))
    model: PreTrainedModel = pair.auto_class.from_config(full)
    spread_weights(model, _SPREADS.get(pair.model_type, _SPREAD))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if pair.task is Task.TEXT_EMBEDDING and pair.model_type in LAST_TOKEN:
        (folder / "modules.json").write_text(json.dumps(_MODULES))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))


@torch.no_grad()
def spread_weights(model: nn.Module, spread: float) -> None:
    """Draw matrices anew: what types draw themselves is so small, or so unequal, that answers hardly differ."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=spread)
        elif name.endswith("bias"):
            parameter.normal_(std=spread / 2)
