"""Models with a fault: a tokenizer that makes more than they read, or weights that are not finite."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from runners.encoder.runner import EncoderRunner


def add_tokens(folder: Path, copy: Path, *tokens: str, special: Mapping[str, str] | None = None) -> Path:
    """A copy of a model whose tokenizer has more tokens, which the model has no embeddings for.

    Args:
        special: what special tokens are to be, such as {"mask_token": "<mask>"}.
    """
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(dict(special or {}))
    tokenizer.save_pretrained(copy)
    return copy


def break_token(runner: EncoderRunner, token: str) -> None:
    """Make the scores of every text with a token NaN, and of no others, once the model is loaded.

    A model whose output layer has the same weights must keep them apart (`tie_word_embeddings=False`).
    """
    loaded = runner._loaded
    assert loaded is not None
    index = loaded.encoder_task.tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    assert index != loaded.encoder_task.tokenizer.unk_token_id, f"{token!r} is no token"
    table = loaded.model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    with torch.inference_mode():
        table.weight[index] = math.nan
