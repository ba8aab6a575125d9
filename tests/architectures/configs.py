"""Tiny configs of every model type: one rule for all, then what single ones need beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedTokenizerBase

_HEADS = 4
_HEAD_DIM = 8
_HIDDEN = _HEADS * _HEAD_DIM
_INTERMEDIATE = 64
_POSITIONS = 160
# So that a long text crosses windows several times.
_WINDOW = 8
_EXPERTS = 4
_RANK = 16

# What each attribute of a config is in a tiny model, whatever the type.
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "dim", "n_embd", "emb_dim", "word_embed_proj_dim"), _HIDDEN),
    **dict.fromkeys(("embedding_size", "true_hidden_size", "intra_bottleneck_size", "pooler_hidden_size"), _HIDDEN),
    **dict.fromkeys(("input_embedding_size", "output_embedding_size", "attention_hidden_size"), _HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "l_layers", "r_layers", "x_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), _HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), _HEADS // 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "kv_channels", "attention_head_size"), _HEAD_DIM),
    "attention_head_dim": _HEAD_DIM,
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "rotary_dim", "dim_model_base"), _HEAD_DIM),
    **dict.fromkeys(("intermediate_size", "d_ff", "d_inner", "dff", "hidden_dim", "ffn_dim"), _INTERMEDIATE),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size", "ffn_hidden_size"), _INTERMEDIATE),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _RANK),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "adapter_rank", "embedding_rank", "embedding_dim"), _RANK),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), _EXPERTS),
    # All of them: a router's choice is a jump, and rounding would decide it.
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), _EXPERTS),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    "qk_head_dim": 2 * _HEAD_DIM,
    "query_pre_attn_scalar": _HEAD_DIM,
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), _POSITIONS),
    **dict.fromkeys(("max_encoder_position_embeddings", "max_decoder_position_embeddings"), _POSITIONS),
    **dict.fromkeys(("sliding_window", "local_attention", "attention_window", "window_size"), _WINDOW),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), _HEAD_DIM),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), _HEADS),
}  # fmt: skip

_LATENT = {"num_key_value_heads": _HEADS}
_MAMBA = {"mamba_dt_rank": _HEAD_DIM, "mamba_d_state": _HEAD_DIM, "n_mamba_heads": 2, "use_mamba_kernels": False}
# A block that several layers share: attention over twice the width, beside a Mamba layer of each.
_HYBRID = {
    "layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3,
    "num_key_value_heads": _HEADS, "attention_head_dim": 2 * _HEAD_DIM, "attention_hidden_size": 2 * _HIDDEN,
}  # fmt: skip
_SPARSE = {"block_size": 4, "num_random_blocks": 1}
# What single types need beside it: sizes that must fit together, and windows that a long text crosses.
_OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _LATENT,
    "axk2": _LATENT | {"index_n_heads": _HEADS, "index_head_dim": 2 * _HEAD_DIM},
    "big_bird": _SPARSE,
    "bigbird_pegasus": _SPARSE,
    "canine": {"local_transformer_stride": 16, "num_hash_buckets": 256},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"], "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "deepseek_v2": _LATENT | {"num_experts_per_tok": _EXPERTS},
    "deepseek_v3": _LATENT,
    "esmc": _LATENT,
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "architectures": ["FunnelModel"]},
    "gemma3_text": {"use_bidirectional_attention": True},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": _HEAD_DIM},
    "hunyuan_v1_moe": {"head_dim": _HEAD_DIM},
    "jamba": _MAMBA | {"attn_layer_offset": 1, "attn_layer_period": 2},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4},
    "lilt": {"hidden_size": 48},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": _HEAD_DIM},
    "markuplm": {
        "max_xpath_tag_unit_embeddings": 20, "max_xpath_subs_unit_embeddings": 20, "tag_pad_id": 5, "subs_pad_id": 5,
        "max_depth": 2, "xpath_unit_hidden_size": 4,
    },
    "minicpm3": _LATENT,
    "minimax": {"block_size": _WINDOW},
    "ministral": {"head_dim": _HEAD_DIM},
    "mistral4": _LATENT | {"head_dim": 2 * _HEAD_DIM},
    "modernbert-decoder": {"cls_token_id": 0, "sep_token_id": 2},
    "nemotron": {"head_dim": _HEAD_DIM, "num_key_value_heads": _HEADS // 2},
    "neomme": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "nystromformer": {"conv_kernel_size": 9},
    "perceiver": {
        "num_latents": 16, "d_latents": _HIDDEN, "num_self_attends_per_block": 2, "num_self_attention_heads": _HEADS,
        "num_cross_attention_heads": _HEADS,
    },
    "reformer": {
        "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [10, 16], "attn_layers": ["local", "lsh"], "hash_seed": 0,
        "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "is_decoder": False, "num_buckets": 4,
    },
    "smollm3": {"no_rope_layer_interval": 2},
    "t5": {"decoder_start_token_id": 1},
    "xmod": {"default_language": "en_XX"},
    "zamba": _MAMBA | _HYBRID,
    "zamba2": _MAMBA | _HYBRID | {"chunk_size": 16, "mamba_headdim": _HIDDEN, "num_query_groups": _HEADS},
}  # fmt: skip


def tiny_config(model_type: str, tokenizer: PreTrainedTokenizerBase, **config: Any) -> PretrainedConfig:
    """The config of a tiny model of this type whose vocabulary is the tokenizer's.

    Args:
        config: what the task or the case needs beside it.
    """
    ids = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "cls_token_id": tokenizer.cls_token_id,
        "sep_token_id": tokenizer.sep_token_id,
        "mask_token_id": tokenizer.mask_token_id,
    }
    config_class = CONFIG_MAPPING[model_type]
    return config_class(**_shrink(config_class(), ids) | _OVERRIDES.get(model_type, {}) | config)


def _shrink(full: PretrainedConfig, ids: Mapping[str, int | None]) -> dict[str, Any]:
    """The attributes of a config that are smaller in a tiny one, those of the configs inside it too."""
    known = full.to_dict()
    shrunk: dict[str, Any] = {name: size for name, size in _SIZES.items() if isinstance(known.get(name), int)}
    shrunk |= {name: number for name, number in ids.items() if name in known}
    kinds = list(dict.fromkeys(known.get("layer_types") or ()))
    if kinds:
        # One layer of each kind that the model has, and at least two.
        shrunk["layer_types"] = kinds if len(kinds) > 1 else kinds * 2
        shrunk["num_hidden_layers"] = len(shrunk["layer_types"])
    for name in full.sub_configs:
        inner = getattr(full, name, None)
        if isinstance(inner, PretrainedConfig):
            shrunk[name] = {"model_type": inner.model_type, **_shrink(inner, ids)}
    return shrunk
