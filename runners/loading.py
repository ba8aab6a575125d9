"""From arguments to a config, a tokenizer, weights, a dtype and a length limit."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from runners.arguments import Arguments
from runners.errors import ModelLoadError, brief, one_line
from runners.model_files import find_file, load_json
from runners.task import is_embedder, read_architectures

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


def load_config(arguments: Arguments, overrides: Mapping[str, Any] = MappingProxyType({})) -> PretrainedConfig:
    """Load config.json from a folder or the hub.

    Args:
        overrides: values that hold instead of the file's, those that the model's config knows.

    Raises:
        ModelLoadError: there is no such folder, or no config in it.
    """
    path = Path(arguments.model)
    if (arguments.model_id is None or path.is_absolute()) and not path.is_dir():
        raise ModelLoadError(
            f"there is no folder {arguments.model}: set --model_id to a hub id or a folder, or --model_dir to a folder"
        )
    _refuse_adapter(arguments)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelLoadError(f"the folder {arguments.model} holds no config.json, so it is not a Hugging Face model")
    written = load_json(arguments, "config.json")
    # A repository without one is for `transformers` to explain.
    corrected = _check_config(arguments, written) if find_file(arguments, "config.json") else {}
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
        raise ModelLoadError(f"{arguments.model}/config.json cannot be used: {_name_key(error, written)}") from error
    return config


def _refuse_adapter(arguments: Arguments) -> None:
    """Refuse a PEFT adapter, which `transformers` applies where PEFT is installed, and passes over where it is not."""
    adapter = load_json(arguments, "adapter_config.json")
    if adapter is None:
        return
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    raise ModelLoadError(
        f"{arguments.model} holds an adapter_config.json: it is a PEFT adapter of {base or 'another model'}, and this "
        "server applies none; merge it into that model (merge_and_unload) and serve the result, or remove the file if "
        "that is done"
    )


def _check_config(arguments: Arguments, written: Any) -> dict[str, Any]:
    """What is to be said of a config.json that `transformers` reads wrongly or without a word; returns what to correct.

    Raises:
        ModelLoadError: a value is of a wrong type.
    """
    architectures = read_architectures(written)
    labels, count = written.get("id2label"), written.get("num_labels")
    if labels is not None and (
        not isinstance(labels, dict) or not all(re.fullmatch(r"-?\d+", index) for index in labels)
    ):
        raise ModelLoadError(
            f"id2label in {arguments.model}/config.json must be an object that names classes by their numbers, "
            f'{{"0": "...", ...}}; it is {str(labels)[:80]}'
        )
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ModelLoadError(f"num_labels in {arguments.model}/config.json is {count!r}, not a number of classes")
    if labels is not None and count is not None and len(labels) != count:
        logger.warning("num_labels in config.json is %d, and id2label has %d names, which holds", count, len(labels))
    if isinstance(written.get("architectures"), str):
        logger.warning("architectures in config.json is a name, not a list: it is taken for %s", architectures)
        return {"architectures": architectures}
    return {}


def _name_key(error: Exception, written: Any) -> str:
    """An error about a config in one line, with the keys of config.json whose values it speaks of."""
    if isinstance(error, StrictDataclassFieldValidationError):
        # Its last line has the field, what it must be, and what it is.
        return str(error).strip().splitlines()[-1].strip()
    text = one_line(error)
    values = written.items() if isinstance(written, dict) else ()
    keys = [f"{key} is {value!r}" for key, value in values if isinstance(value, str) and value and value in text]
    return f"{type(error).__name__}: {text}" + (f" ({', '.join(keys)})" if keys else "")


def load_tokenizer(
    arguments: Arguments, overrides: Mapping[str, Any] = MappingProxyType({}), length: int | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer; its own lower-casing holds unless `disable_lower_case` says otherwise.

    Args:
        overrides: settings that hold instead of those of its files.
        length: a length of texts in tokens that its own limit is not to stand against.

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
    arguments: Arguments,
    auto_class: type[Any],
    device: torch.device,
    unused_prefixes: tuple[str, ...],
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Load the weights for one task, ready to run.

    Args:
        auto_class: the `transformers` auto class of the task.
        unused_prefixes: weights that may be missing because the task does not read them.
        config: the model's config, if it is not to be read again.

    Raises:
        ModelLoadError: there are no safetensors, or the checkpoint has no head for the task, which `transformers`
            would fill with random numbers, or its weights are not of the shapes that its config names.
    """
    try:
        model, report = _encoder_class(auto_class, config).from_pretrained(
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
            f"no model can be made of {arguments.model}/config.json: {_name_key(error, written)}"
        ) from error
    _refuse_other_shapes(arguments, report["mismatched_keys"])
    if auto_class is AutoModel:
        model = _take_text_part(model)
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
    model_class = _encoder_class(auto_class, config)
    with torch.device("meta"):
        model: PreTrainedModel = (
            auto_class.from_config(config, trust_remote_code=arguments.trust_remote_code)
            if model_class is auto_class
            else model_class(config)
        )
        return _take_encoder(model) if auto_class is AutoModel else model


def _encoder_class(auto_class: type[Any], config: PretrainedConfig | None) -> type[Any]:
    """The class that embeds by an encoder alone, as sentence-transformers loads it; else the auto class.

    It is that of a checkpoint that holds no more, which is what sentence-transformers saves, and T5's kind has one for
    whole checkpoints too.
    """
    if auto_class is not AutoModel or config is None or hasattr(config, "auto_map"):
        return auto_class
    names = list(config.architectures or [])
    names.append(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, ""))
    names = [name for name in names if name.endswith(("EncoderModel", "Encoder"))]
    if not names:
        return auto_class
    # Not all of them are among the library's own names.
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    found: type[Any] | None = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if found is None:
        return auto_class
    # T5Gemma's class takes no other.
    config.is_encoder_decoder = False
    return found


def _take_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """Of a model that has configs for encoder and decoder the encoder, whose config is that of the vectors."""
    encoder: PreTrainedModel = model.get_encoder() if "encoder" in model.config.sub_configs else model
    return encoder


def _take_text_part(model: PreTrainedModel) -> PreTrainedModel:
    """Of an encoder-decoder that does not run from a text alone the encoder, as sentence-transformers has it.

    BART's kind does run, and its vectors are its decoder's.

    Raises:
        ModelLoadError: its encoder does not run from a text alone either.
    """
    model = _take_encoder(model)
    if not model.config.is_encoder_decoder or _fails_on_text(model) is None:
        return model
    encoder: PreTrainedModel = model.get_encoder()
    if (reason := _fails_on_text(encoder)) is not None:
        raise ModelLoadError(f"{type(model).__name__} does not run from text alone, nor does its encoder: {reason}")
    return encoder


def _fails_on_text(model: PreTrainedModel) -> str | None:
    """Why a model does not run from token ids alone; None where it does."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return f"it takes {model.main_input_name}"
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0, 1]]))
    except Exception as error:
        return brief(error)
    return None


def _refuse_other_shapes(
    arguments: Arguments, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Refuse weights, `mismatched`, that have one shape in the checkpoint, and another by the config."""
    if not mismatched:
        return
    name, stored, expected = min(mismatched, key=lambda weight: weight[0])
    differing = {size for size, other in zip(expected, stored, strict=False) if size != other}
    written = load_json(arguments, "config.json") or {}
    # Without either there are two classes.
    sizes = {"num_labels": 2} | {key: value for key, value in written.items() if isinstance(value, int)}
    if labels := written.get("id2label"):
        sizes = {key: size for key, size in sizes.items() if key != "num_labels"} | {"id2label": len(labels)}
    keys = [key for key, size in sizes.items() if size in differing]
    raise ModelLoadError(
        f"{arguments.model}/config.json does not fit the weights: {name} has the shape {list(stored)}, and "
        f"{list(expected)} by the config" + (f" (of that size there: {', '.join(keys)})" if keys else "")
    )


def holds_embedder(arguments: Arguments) -> bool:
    """Whether the model's files are those of a SentenceTransformer that pools tokens."""
    return is_embedder(load_json(arguments, "modules.json"), load_json(arguments, "config_sentence_transformers.json"))


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
