"""Tiny seeded generators of every registered type, with weights large enough for greedy output to vary."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.architectures.models import spread_weights
from tests.architectures.vocabularies import tokenizer_of
from tests.generator_families.configs import make_config
from tests.generator_families.registry import Family

_SPREAD = 0.3


def save_generator(family: Family, folder: Path) -> None:
    """Save a model with a tokenizer; its generation config has no processors."""
    tokenizer = tokenizer_of("t5" if family.has_encoder else "bpe")
    config = make_config(family, tokenizer)
    torch.manual_seed(zlib.crc32(str(family).encode()))
    model: PreTrainedModel = family.auto_class.from_config(config)
    spread_weights(model, _SPREAD)
    start = tokenizer.pad_token_id if family.has_encoder else None
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, decoder_start_token_id=start
    )
    model.save_pretrained(folder)
    tokenizer.model_max_length = 10**9
    tokenizer.save_pretrained(folder)
