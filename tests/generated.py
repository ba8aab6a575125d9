"""What `generate()` makes of a prompt, and what an engine makes of it, as token ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from runners.core.generation import Delta, Sampling
from runners.generator.transformers_engine import TransformersEngine

PROMPTS = ("Return the", "Open the file and return its contents as a string", "An exception is raised")


def copy_with_defaults(folder: Path, copy: Path, **settings: Any) -> Path:
    """The model with these settings in its generation_config.json."""
    shutil.copytree(folder, copy)
    path = copy / "generation_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    # Else it would be made of config.json again.
    config.pop("_from_model_config", None)
    path.write_text(json.dumps(config | settings), encoding="utf-8")
    return copy


def load(folder: Path) -> PreTrainedModel:
    """The stock model."""
    auto_class: Any = (
        AutoModelForSeq2SeqLM if AutoConfig.from_pretrained(folder).is_encoder_decoder else AutoModelForCausalLM
    )
    model: PreTrainedModel = auto_class.from_pretrained(folder).eval()
    return model


def generate(model: Any, prompt: list[int], **settings: Any) -> list[list[int]]:
    """The outputs that `generate()` returns, without the prompt and what fills up the shorter ones."""
    ids = torch.tensor([prompt])
    rows = model.generate(ids, attention_mask=torch.ones_like(ids), **settings).tolist()
    start = 1 if model.config.is_encoder_decoder else len(prompt)
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    ends = ends if isinstance(ends, list) else [ends]
    outputs = []
    for row in rows:
        output = row[start:]
        end = next((index for index, token in enumerate(output) if token in ends), len(output))
        outputs.append(output[: end + 1])
    return outputs


async def collect(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> list[Delta]:
    """All deltas of a request."""
    ids = await engine.tokenize(prompt) if isinstance(prompt, str) else prompt
    return [delta async for delta in engine.generate(ids, Sampling(**sampling))]


async def collect_ids(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> list[int]:
    """The token ids of a request with one choice."""
    return [token for delta in await collect(engine, prompt, **sampling) for token in delta.token_ids]
