"""The longest text or sequence that a model takes, in tokens."""

from __future__ import annotations

import logging
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# The config keys for the number of positions, as in vLLM and KServe.
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
    # LED has a number for its encoder and another for its decoder.
    "max_encoder_position_embeddings",
)
# YaRN scales these positions. For the other kinds, `max_position_embeddings` is scaled already.
_ORIGINAL_KEY = "original_max_position_embeddings"
_SCALED_ALREADY = frozenset({"longrope", "llama3", "su", "default", "proportional", "mrope"})
# A tokenizer without a limit reports a number like 1e30.
_NO_LIMIT = 2**31
_FALLBACK_LENGTH = 2048


def limit_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requested: int | None, recommended: int | None = None
) -> int:
    """The longest text in tokens.

    It is the requested length, at most the model's positions. Without one, it is the smallest of the model's positions,
    the tokenizer's limit and the recommended length.

    Args:
        requested: the operator's `max_length`.
        recommended: the length that a sentence-transformers model was made for.
    """
    positions = count_positions(model)
    if requested is not None:
        return _bound_length(requested, positions)
    limits = [positions, tokenizer.model_max_length, recommended]
    return (
        min((int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
        or _assume_length()
    )


def limit_sequence(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requested: int | None) -> int:
    """The longest sequence of a generator in tokens; the tokenizer's limit does not count, as in vLLM.

    If the model has no limit of positions (T5, Mamba), it is the tokenizer's limit, but at least `_FALLBACK_LENGTH`:
    T5's tokenizers say 512, but relative positions have no such limit.

    Args:
        requested: the operator's `max_length`.
    """
    positions = count_positions(model)
    if requested is not None:
        return _bound_length(requested, positions)
    if positions is not None:
        return positions
    limit = tokenizer.model_max_length
    return max(limit, _FALLBACK_LENGTH) if limit < _NO_LIMIT else _assume_length()


def _bound_length(requested: int, positions: int | None) -> int:
    """The requested length, at most the model's positions; log a warning if it is more."""
    if positions is None or requested <= positions:
        return requested
    logger.warning("max_length %d is more than the model takes, which is %d", requested, positions)
    return positions


def _assume_length() -> int:
    """The length of a model without any limit; logs a warning."""
    logger.warning("neither model nor tokenizer limits the length of texts; assuming %d tokens", _FALLBACK_LENGTH)
    return _FALLBACK_LENGTH


def position_padding(model: PreTrainedModel) -> tuple[int, int] | None:
    """The padding_idx and the rows of the position table of RoBERTa and similar models; None for other models.

    These models count positions from `padding_idx` + 1 and skip padding tokens, so 514 rows are 512 tokens. Their
    position table has a `padding_idx`.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx, module.num_embeddings
    return None


def count_positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None if the config does not say."""
    if (padding := position_padding(model)) is not None:
        return padding[1] - padding[0] - 1
    config = model.config.get_text_config()
    # Old configs of T5 have `n_positions`, but its relative positions have no limit.
    keys = [
        key for key in _POSITION_KEYS if key != "n_positions" or not hasattr(config, "relative_attention_num_buckets")
    ]
    counts = [value for key in keys if isinstance(value := getattr(config, key, None), int) and value > 0]
    return _scale(config, min(counts)) if counts else None


def _scale(config: PretrainedConfig, positions: int) -> int:
    """The positions after rotary scaling, as KServe and vLLM count them.

    There is one difference. vLLM 0.32 assumes that YaRN's `max_position_embeddings` is scaled already. Where it is not,
    as in the configuration that Qwen2.5 documents, this function returns more.
    """
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # In Gemma 3 they are scaled already.
    if "gemma3" in config.model_type or config.model_type.startswith("t5gemma2"):
        return positions
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    for each in nested or [parameters]:
        kind, factor = each.get("rope_type", "default"), each.get("factor") or 1
        if "yarn" in kind:
            positions = max(positions, int(factor * each.get(_ORIGINAL_KEY, 0)))
        elif kind not in _SCALED_ALREADY:
            return int(factor * positions)
    return positions
