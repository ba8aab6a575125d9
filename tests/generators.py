"""Tiny seeded generators with real tokenizers, of weights so large that greedy output varies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from runners.core.generation import Delta, Sampling
from runners.generator.transformers_engine import TransformersEngine
from tests.families import albert_unigram, roberta_bpe

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    "<{{ message.role }}>{{ message.content }}{% endfor %}{% if tools %}[{{ tools[0].function.name }}]{% endif %}"
    "{% if mood %}({{ mood }}){% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "init_std": 0.7, "max_position_embeddings": 64,
    "decoder_start_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": None,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64},
    "mistral": {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 64, "sliding_window": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "t5": {"d_model": 32, "d_kv": 16, "num_heads": 2, "num_layers": 2, "d_ff": 64, "initializer_factor": 4.0, "n_positions": 64, "decoder_start_token_id": 1},
    "bart": BART,
    "mbart": {**BART, "forced_bos_token_id": None},
    "m2m_100": {**BART, "forced_bos_token_id": None},
    # Absolute positions that cannot be set by row: batches only start together.
    "pegasus_x": {**BART, "forced_bos_token_id": None},
}  # fmt: skip


def save_generator(folder: Path, family: str, **config: Any) -> Path:
    """A model of the family, with its tokenizer."""
    torch.manual_seed(sum(map(ord, family)))
    tokenizer = albert_unigram() if family == "t5" else roberta_bpe()
    tokenizer.chat_template = CHAT_TEMPLATE if family == "llama" else None
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id, "eos_token_id": 2}
    full = AutoConfig.for_model(
        family, **{"vocab_size": len(tokenizer), "initializer_range": 0.6, **ids} | CONFIGS[family] | config
    )
    auto_class: Any = AutoModelForSeq2SeqLM if full.is_encoder_decoder else AutoModelForCausalLM
    auto_class.from_config(full).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


async def collect(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> list[Delta]:
    ids = await engine.tokenize(prompt) if isinstance(prompt, str) else prompt
    return [delta async for delta in engine.generate(ids, Sampling(**sampling))]


async def complete(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> str:
    return "".join(delta.text for delta in await collect(engine, prompt, **sampling))


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def stop_reason(deltas: list[Delta]) -> tuple[Any, Any]:
    return deltas[-1].finish_reason, deltas[-1].stop_reason


def generate_greedily(folder: str | Path, prompt: str | list[dict[str, str]], tokens: int) -> str:
    """The continuation of a text, or the answer to a chat, by `transformers`."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    if isinstance(prompt, str):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    output = model.generate(ids, do_sample=False, max_new_tokens=tokens)
    text: str = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text
