"""From arguments to a config, a tokenizer, weights, a dtype and a length limit."""

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

# The names under which configs give the number of positions, as vLLM and KServe know them.
_POSITION_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
    # LED's, which has others for its decoder.
    "max_encoder_position_embeddings",
)
# YaRN scales positions to so many times these; the other kinds count `max_position_embeddings` scaled already.
_ORIGINAL_KEY = "original_max_position_embeddings"
_SCALED_ALREADY = frozenset({"longrope", "llama3", "su", "default", "proportional", "mrope"})
# What a tokenizer reports when it knows no limit is a number like 1e30.
_NO_LIMIT = 2**31
_FALLBACK_LENGTH = 2048
BATCH_TOKENS_ON_CPU = 1536
_BATCH_TOKENS_ON_GPU = 16384


def load_config(arguments: Arguments, overrides: Mapping[str, Any] = MappingProxyType({})) -> PretrainedConfig:
    """Load config.json from a folder or the hub.

    Args:
        overrides: values that hold instead of the file's, those that the model's config knows.

    Raises:
        ModelLoadError: there is no such folder, or no config in it, or it names code of the hub that is not trusted.
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
    # A repository without one is for `transformers` to explain.
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
    """Load the tokenizer; its own lower-casing holds unless `disable_lower_case` says otherwise.

    Args:
        overrides: settings that hold instead of those of its files.
        length: a length of texts in tokens that its own limit is not to stand against.
        needs_fast: whether one that is written in Python is refused; those of M2M100 and Marian have no other form.

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
    # Without any file `transformers` makes an empty tokenizer, to which every word is unknown.
    filenames = sorted({*type(tokenizer).vocab_files_names.values(), "tokenizer.json"})
    if not any(find_file(arguments, filename) for filename in filenames):
        raise ModelLoadError(f"{arguments.model} has no tokenizer: none of {', '.join(filenames)}")
    if arguments.disable_lower_case is not None:
        lowers = tokenizer.tokenize("AN EXAMPLE") == tokenizer.tokenize("an example")
        if lowers is arguments.disable_lower_case:
            logger.warning("disable_lower_case has no effect on %s", type(tokenizer).__name__)
    return tokenizer


def resolve_dtype(arguments: Arguments, device: torch.device) -> torch.dtype:
    """The dtype of the weights; `auto` is float16 on a GPU and float32 on a CPU."""
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
    """Most tokens that are computed at once."""
    return arguments.max_batch_tokens or (_BATCH_TOKENS_ON_GPU if device.type == "cuda" else BATCH_TOKENS_ON_CPU)


def load_model(
    arguments: Arguments,
    auto_class: type[Any],
    device: torch.device,
    unused_prefixes: tuple[str, ...],
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Load the weights for one task, ready to run.

    They may lie in the mapped file; `copy_mapped_weights` copies those that are still used once the model is prepared.

    Args:
        auto_class: the `transformers` auto class of the task.
        unused_prefixes: weights that may be missing because the task does not read them.
        config: the model's config, if it is not to be read again.

    Raises:
        ModelLoadError: there are no safetensors, or the checkpoint has no head for the task, which `transformers`
            would fill with random numbers, or its weights are not of the shapes that its config names.
    """
    refuse_weights(arguments)
    try:
        model, report = encoder_class(auto_class, config).from_pretrained(
            arguments.model,
            config=config,
            # Else `transformers` raises an error that names none of them.
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
    """The model of one task without its weights, which a predictor has; its inputs and positions can be asked for."""
    model_class = encoder_class(auto_class, config)
    with torch.device("meta"):
        model: PreTrainedModel = (
            auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
            if model_class is auto_class
            else model_class(config)
        )
        return take_encoder(model) if auto_class is AutoModel else model


def holds_embedder(arguments: Arguments) -> bool:
    """Whether the model's files are those of a SentenceTransformer that pools tokens."""
    return is_embedder(load_json(arguments, "modules.json"), load_json(arguments, "config_sentence_transformers.json"))


def limit_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, requested: int | None, recommended: int | None = None
) -> int:
    """The longest text in tokens: what was asked for, as far as the model has positions for it.

    Where nothing was asked for, it is the smallest of the model's positions, the tokenizer's limit and what is
    recommended.

    Args:
        requested: the operator's `max_length`.
        recommended: the length a sentence-transformers model was made for.
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
    """As `limit_length`, of a generator: the tokenizer's limit does not count, as on vLLM.

    Where the model has no positions that end (T5, Mamba), it is what the tokenizer says, but at least what is assumed
    where nothing is said: T5's tokenizers say 512, which its relative positions are not bound to.
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
    """What was asked for, but no more than there is."""
    if positions is None or requested <= positions:
        return requested
    logger.warning("max_length %d is more than the model takes, which is %d", requested, positions)
    return positions


def assume_length() -> int:
    logger.warning("neither model nor tokenizer say how long a text may be: assuming %d tokens", _FALLBACK_LENGTH)
    return _FALLBACK_LENGTH


def position_padding(model: PreTrainedModel) -> tuple[int, int] | None:
    """For RoBERTa and its like (padding_idx, positions), else None.

    They count positions from `padding_idx` + 1, skip padding tokens, and say so by giving their position table a
    `padding_idx`: 514 positions are 512 tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx, module.num_embeddings
    return None


def count_positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for."""
    if (padding := position_padding(model)) is not None:
        return padding[1] - padding[0] - 1
    config = model.config.get_text_config()
    # Old configs of T5 have `n_positions` beside relative positions, which end nowhere.
    keys = [
        key for key in _POSITION_KEYS if key != "n_positions" or not hasattr(config, "relative_attention_num_buckets")
    ]
    counts = [value for key in keys if isinstance(value := getattr(config, key, None), int) and value > 0]
    return _scale(config, min(counts)) if counts else None


def _scale(config: PretrainedConfig, positions: int) -> int:
    """Positions after rotary scaling, as KServe and vLLM count them.

    vLLM 0.32 takes YaRN's `max_position_embeddings` for scaled; where it is not, as Qwen2.5 is to be configured, this
    is more.
    """
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # Gemma 3 counts them scaled already.
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
