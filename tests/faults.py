"""Models with a fault: a tokenizer that makes more than they read, or weights that are not finite."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer


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
