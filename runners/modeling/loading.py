"""Loading a model's config, tokenizer and weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.core.task import Task, recognize_sentence_transformer
from runners.modeling.config_checks import (
    check_config,
    describe_config_error,
    refuse_adapter,
    refuse_kernels,
    refuse_other_shapes,
    refuse_weights,
)
from runners.modeling.meta_device import WithoutCompiler
from runners.modeling.model_files import check_folder, find_file, load_json
from runners.modeling.text_part import encoder_class, take_encoder, take_text_part

logger = logging.getLogger(__name__)

BATCH_TOKENS_ON_CPU = 1536
_BATCH_TOKENS_ON_GPU = 16384


def silence_transformers() -> None:
    """Disable the log and the progress bars of `transformers`: this server's errors and log lines say what matters."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def load_config(arguments: Arguments, overrides: Mapping[str, Any] = MappingProxyType({})) -> PretrainedConfig:
    """Load config.json from a folder or the hub.

    Args:
        overrides: values that replace those of the file.

    Raises:
        ModelLoadError: the folder or its config.json does not exist, or the config cannot be used.
    """
    check_folder(arguments)
    refuse_adapter(arguments)
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
        with WithoutCompiler():
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


def find_task_of_files(arguments: Arguments) -> Task | None:
    """The task of the model's sentence-transformers files; None if it has none, or they decide nothing."""
    return recognize_sentence_transformer(
        load_json(arguments, "modules.json"), load_json(arguments, "config_sentence_transformers.json")
    )
