"""What generators need of a config beside what `tests.architectures.configs` makes tiny."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, EncoderDecoderConfig, PretrainedConfig, PreTrainedTokenizerBase

from tests.architectures.configs import tiny_config
from tests.generator_families.registry import Family

# All heads have keys of their own, as the kinds with latent attention need it.
_LATENT = {"num_key_value_heads": 4}
_INDEXED = _LATENT | {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 8}
_MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16, "mamba_expand": 2}
_SETTINGS: dict[str, dict[str, Any]] = {
    "bamba": _MAMBA2 | {"attn_layer_indices": [1]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 2},
    },
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 4, "n_shared_experts": 1},
    "deepseek_v32": _INDEXED,
    "falcon_h1": _MAMBA2 | {"mamba_d_ssm": 64},
    # As an encoder it is tried without causal masks.
    "gemma3_text": {"use_bidirectional_attention": False},
    "gemma3n_text": {
        "layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.0] * 4, "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 3000, "laurel_rank": 8,
    },
    "gemma4_text": {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 3000},
    "glm4_moe_lite": _LATENT,
    "glm_moe_dsa": _INDEXED,
    "granitemoehybrid": _MAMBA2 | {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2},
    "kimi_linear": _LATENT | {"linear_head_dim": 8, "linear_num_heads": 4, "mlp_layer_types": ["dense", "sparse"], "num_experts_per_token": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2, "num_dense_layers": 1},
    "longcat_flash": _LATENT | {"expert_ffn_hidden_size": 16, "zero_expert_num": 2, "ffn_hidden_size": 64},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "state_size": 8, "chunk_size": 16},
    "nllb-moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 4, "hc_lowrank": 8, "ple_embed_dim": 32,
    },
    # Its positions are counted from it, and only 0 gives those that it has asserted.
    "prophetnet": {"pad_token_id": 0},
    "roc_bert": {"pronunciation_vocab_size": 10, "shape_vocab_size": 10},
    "switch_transformers": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "expert_capacity": 8},
    "xlstm": {"embedding_dim": 32},
    "youtu": _LATENT,
}  # fmt: skip


def make_config(family: Family, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The config of a tiny generator."""
    settings = _SETTINGS.get(family.model_type, {}) | dict(family.config)
    if family.model_type == "encoder-decoder":
        encoder = tiny_config("bert", tokenizer)
        decoder = tiny_config("bert", tokenizer, is_decoder=True, add_cross_attention=True)
        config = EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
        config.decoder_start_token_id, config.pad_token_id = tokenizer.pad_token_id, tokenizer.pad_token_id
        return config
    if family.has_encoder:
        return tiny_config(family.model_type, tokenizer, decoder_start_token_id=tokenizer.pad_token_id, **settings)
    # Encoders of old that are registered as decoders too.
    full = AutoConfig.for_model(family.model_type)
    if "is_decoder" in full.to_dict():
        settings = {"is_decoder": True} | settings
    return tiny_config(family.model_type, tokenizer, **settings)
