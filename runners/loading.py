"""From arguments to a config, a tokenizer, weights, a dtype and a length limit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from runners.arguments import Arguments
from runners.errors import ModelLoadError

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
)
# What a tokenizer reports when it knows no limit is a number like 1e30.
_NO_LIMIT = 2**31
_FALLBACK_LENGTH = 2048
BATCH_TOKENS_ON_CPU = 1536
_BATCH_TOKENS_ON_GPU = 16384


def load_config(arguments: Arguments) -> PretrainedConfig:
    """Load config.json from a folder or the hub.

    Raises:
        ModelLoadError: there is no such folder, or no config in it.
    """
    path = Path(arguments.model)
    if (arguments.model_id is None or path.is_absolute()) and not path.is_dir():
        raise ModelLoadError(
            f"there is no folder {arguments.model}: set --model_id to a hub id or a folder, or --model_dir to a folder"
        )
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelLoadError(f"the folder {arguments.model} holds no config.json, so it is not a Hugging Face model")
    config: PretrainedConfig = AutoConfig.from_pretrained(
        arguments.model, revision=arguments.model_revision, trust_remote_code=arguments.trust_remote_code
    )
    return config


def load_tokenizer(arguments: Arguments) -> PreTrainedTokenizerBase:
    """Load the tokenizer; its own lower-casing holds unless `disable_lower_case` says otherwise.

    Raises:
        ModelLoadError: there is no tokenizer, or it has no fast (Rust) form.
    """
    casing = {} if arguments.disable_lower_case is None else {"do_lower_case": not arguments.disable_lower_case}
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        arguments.model,
        revision=arguments.tokenizer_revision or arguments.model_revision,
        trust_remote_code=arguments.trust_remote_code,
        **casing,
    )
    if not tokenizer.is_fast:
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
    arguments: Arguments, auto_class: type[Any], device: torch.device, unused_prefixes: tuple[str, ...]
) -> PreTrainedModel:
    """Load the weights for one task, ready to run.

    Args:
        auto_class: the `transformers` auto class of the task.
        unused_prefixes: weights that may be missing because the task does not read them.

    Raises:
        ModelLoadError: there are no safetensors, or the checkpoint has no head for the task, which `transformers`
            would fill with random numbers.
    """
    try:
        model, report = auto_class.from_pretrained(
            arguments.model,
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
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(unused_prefixes))
    if missing:
        raise ModelLoadError(
            f"the checkpoint lacks weights of {type(model).__name__} ({', '.join(missing[:4])}"
            f"{', ...' if len(missing) > 4 else ''}): it was made for another task, which --task sets, or is incomplete"
        )
    loaded: PreTrainedModel = model.eval().to(device)
    return loaded


def outline_model(arguments: Arguments, auto_class: type[Any], config: PretrainedConfig) -> PreTrainedModel:
    """The model of one task without its weights, which a predictor has; its inputs and positions can be asked for."""
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
    return model


def load_json(arguments: Arguments, filename: str) -> Any | None:
    """Parse a JSON file that comes with the model; None where it has none."""
    path = find_file(arguments, filename)
    return None if path is None else json.loads(path.read_text(encoding="utf-8"))


def find_file(arguments: Arguments, filename: str) -> Path | None:
    """A file that comes with the model, fetched from the hub if need be; None where it has none."""
    path = cached_file(
        arguments.model,
        filename,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def limit_length(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None, recommended: int | None = None
) -> int:
    """The longest text in tokens: the smallest of the model's positions, the tokenizer's limit and what is asked for.

    Args:
        asked: `max_length` as the operator gave it.
        recommended: the length a sentence-transformers model was made for; holds unless the operator asks otherwise.
    """
    limits = [_count_positions(model), tokenizer.model_max_length]
    known = [int(limit) for limit in limits if limit is not None and limit < _NO_LIMIT]
    if not known and asked is None and recommended is None:
        logger.warning("neither model nor tokenizer say how long a text may be: assuming %d tokens", _FALLBACK_LENGTH)
        return _FALLBACK_LENGTH
    if asked is not None and known and asked > min(known):
        logger.warning("max_length %d is more than the model takes, which is %d", asked, min(known))
    wanted = asked if asked is not None else recommended
    return min([*known, wanted] if wanted is not None else known)


def position_padding(model: PreTrainedModel) -> tuple[int, int] | None:
    """For RoBERTa and its like (padding_idx, positions), else None.

    They count positions from `padding_idx` + 1, skip padding tokens, and say so by giving their position table a
    `padding_idx`: 514 positions are 512 tokens.
    """
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.padding_idx, module.num_embeddings
    return None


def _count_positions(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for."""
    if (padding := position_padding(model)) is not None:
        return padding[1] - padding[0] - 1
    config = model.config.get_text_config()
    positions = [value for key in _POSITION_KEYS if isinstance(value := getattr(config, key, None), int) and value > 0]
    return min(positions, default=None)
