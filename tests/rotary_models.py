"""Tiny decoders with scaled rotary embeddings."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LIMIT = 40
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 3.0, 2.0, 6.0],
    "original_max_position_embeddings": LIMIT, "factor": 4.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT}


def make_model(model_type: str, rope: dict[str, Any], **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "max_position_embeddings": LIMIT if rope is DYNAMIC else 4 * LIMIT,
    }  # fmt: skip
    parameters = {"rope_theta": 10000.0, **rope}
    auto_class: Any = AutoModelForCausalLM
    made: PreTrainedModel = auto_class.from_config(
        AutoConfig.for_model(model_type, **sizes | {"rope_parameters": parameters} | config)
    )
    # As it comes from `from_config`, it is in training mode.
    made.train(False)
    return made


def make_phi() -> PreTrainedModel:
    return make_model("phi3", LONGROPE, original_max_position_embeddings=LIMIT)


def make_phi_moe() -> PreTrainedModel:
    rope = LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.4}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 2}
    return make_model("phimoe", rope, original_max_position_embeddings=LIMIT, **experts)
