"""Loading a model's config, tokenizer and weights, and finding its dtype and length limit."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.core.task import is_embedder
from runners.modeling.config_checks import (
    check_config,
    describe_config_error,
    refuse_adapter,
    refuse_kernels,
    refuse_other_shapes,
    refuse_weights,
)
from runners.modeling.model_files import find_file, load_json
from runners.modeling.text_part import encoder_class, take_encoder, take_text_part

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
BATCH_TOKENS_ON_CPU = 1536
_BATCH_TOKENS_ON_GPU = 16384


def load_config(arguments: Arguments, overrides: Mapping[str, Any] = MappingProxyType({})) -> PretrainedConfig:
    """Load config.json from a folder or the hub.

    Args:
        overrides: values that replace those of the file.

    Raises:
        ModelLoadError: the folder or its config.json does not exist, or the config cannot be used.
    """
    path = Path(arguments.model)
    if (arguments.model_id is None or path.is_absolute()) and not path.is_dir():
        raise ModelLoadError(
            f"there is no folder {arguments.model}: set --model_id to a hub id or a folder, or --model_dir to a folder"
        )
    refuse_adapter(arguments)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelLoadError(f"the folder {arguments.model} holds no config.json, so it is not a Hugging Face model")
    written = load_json(arguments, "config.json")
    refuse_kernels(arguments, written)
    # If a repository has no config.json, `transformers` raises the error.
    corrected = check_config(arguments, written) if find_file(arguments, "config.json") else {}
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            arguments.model,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            **corrected,
            **overrides,
        )
    except OSError:
        raise
    except Exception as error:
        raise ModelLoadError(
            f"{arguments.model}/config.json cannot be used: {describe_config_error(error, written)}"
        ) from error
    return config


def load_tokenizer(
    arguments: Arguments,
    overrides: Mapping[str, Any] = MappingProxyType({}),
    length: int | None = None,
    needs_fast: bool = True,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer. It lower-cases as its files say, unless the argument `disable_lower_case` is set.

    Args:
        overrides: settings that replace those of its files.
        length: the tokenizer's own limit is raised to this length in tokens.
        needs_fast: whether to refuse a tokenizer in Python. M2M100 and Marian have no other form.

    Raises:
        ModelLoadError: there is no tokenizer, or it has no fast (Rust) form.
    """
    casing = {} if arguments.disable_lower_case is None else {"do_lower_case": not arguments.disable_lower_case}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        arguments.model,
        revision=arguments.tokenizer_revision or arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        **{**overrides, **casing},
    )
    tokenizer.model_max_length = max(tokenizer.model_max_length, length or 0)
    if needs_fast and not tokenizer.is_fast:
        raise ModelLoadError(f"{type(tokenizer).__name__} has no fast form (a tokenizer.json), which this server needs")
    # Without any file, `transformers` makes an empty tokenizer, for which every word is unknown.
    filenames = sorted({*type(tokenizer).vocab_files_names.values(), "tokenizer.json"})
    if not any(find_file(arguments, filename) for filename in filenames):
        raise ModelLoadError(f"{arguments.model} has no tokenizer: none of {', '.join(filenames)}")
    if arguments.disable_lower_case is not None:
        lowers = tokenizer.tokenize("AN EXAMPLE") == tokenizer.tokenize("an example")
        if lowers is arguments.disable_lower_case:
            logger.warning("disable_lower_case has no effect on %s", type(tokenizer).__name__)
    return tokenizer


def resolve_dtype(arguments: Arguments, device: torch.device) -> torch.dtype:
    """The dtype of the weights: float32 by default; `auto` is float16 on a GPU and float32 on a CPU."""
    by_name = {
        None: torch.float32,
        "float32": torch.float32,
        "float": torch.float32,
        "float16": torch.float16,
        "half": torch.float16,
        "bfloat16": torch.bfloat16,
        "auto": torch.float16 if device.type == "cuda" else torch.float32,
    }
    return by_name[arguments.dtype]


def resolve_batch_tokens(arguments: Arguments, device: torch.device) -> int:
    """The largest batch in tokens."""
    return arguments.max_batch_tokens or (_BATCH_TOKENS_ON_GPU if device.type == "cuda" else BATCH_TOKENS_ON_CPU)


def load_model(
    arguments: Arguments,
    auto_class: type[Any],
    device: torch.device,
    unused_prefixes: tuple[str, ...],
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Load the model for one task, in evaluation mode on its device.

    The weights may be in a memory-mapped file. Call `copy_mapped_weights` when the model's layers are final.

    Args:
        auto_class: the `transformers` auto class of the task.
        unused_prefixes: prefixes of weights that may be missing, since the task does not read them.
        config: the model's config; None to read it from the files.

    Raises:
        ModelLoadError: there are no safetensors, weights are missing, which `transformers` would fill with random
            numbers, or weights do not have the shapes that the config says.
    """
    refuse_weights(arguments)
    try:
        model, report = encoder_class(auto_class, config).from_pretrained(
            arguments.model,
            config=config,
            # Otherwise `transformers` raises an error that does not name the weights.
            ignore_mismatched_sizes=True,
            revision=arguments.model_revision,
            trust_remote_code=arguments.trust_remote_code,
            dtype=resolve_dtype(arguments, device),
            use_safetensors=None if arguments.allow_pickle else True,
            output_loading_info=True,
        )
    except OSError as error:
        if arguments.allow_pickle or "model.safetensors" not in str(error):
            raise
        raise ModelLoadError(
            f"{arguments.model} has no safetensors weights; if it has .bin weights, --allow_pickle loads them"
        ) from error
    except (KeyError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
        written = load_json(arguments, "config.json")
        raise ModelLoadError(
            f"no model can be made of {arguments.model}/config.json: {describe_config_error(error, written)}"
        ) from error
    refuse_other_shapes(arguments, report["mismatched_keys"])
    if auto_class is AutoModel:
        model = take_text_part(model)
    _refuse_missing_weights(model, [key for key in report["missing_keys"] if not key.startswith(unused_prefixes)])
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def _refuse_missing_weights(model: PreTrainedModel, missing: Sequence[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:4]) + (", ..." if len(missing) > 4 else "")
        raise ModelLoadError(
            f"the checkpoint lacks weights of {type(model).__name__} ({names}): it was made for another task, which "
            "--task sets, or is incomplete"
        )


def build_meta_model(arguments: Arguments, auto_class: type[Any], config: PretrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device, without weights; its config, inputs and positions can be read."""
    model_class = encoder_class(auto_class, config)
    with torch.device("meta"):
        model: PreTrainedModel = (
            auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
            if model_class is auto_class
            else model_class(config)
        )
        return take_encoder(model) if auto_class is AutoModel else model


def holds_embedder(arguments: Arguments) -> bool:
    """Whether the model's files make it a SentenceTransformer that pools tokens."""
    return is_embedder(load_json(arguments, "modules.json"), load_json(arguments, "config_sentence_transformers.json"))


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
        return bound_length(requested, positions)
    limits = [positions, tokenizer.model_max_length, recommended]
    return (
        min((int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)
        or assume_length()
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
        return bound_length(requested, positions)
    if positions is not None:
        return positions
    return (
        max(tokenizer.model_max_length, _FALLBACK_LENGTH) if tokenizer.model_max_length < _NO_LIMIT else assume_length()
    )


def bound_length(requested: int, positions: int | None) -> int:
    """The requested length, at most the model's positions; log a warning if it is more."""
    if positions is None or requested <= positions:
        return requested
    logger.warning("max_length %d is more than the model takes, which is %d", requested, positions)
    return positions


def assume_length() -> int:
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
