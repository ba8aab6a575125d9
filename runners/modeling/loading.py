"""Loading a model's config, tokenizer and weights."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

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
from runners.core.errors import ModelLoadError, NonFiniteModelError
from runners.core.task import Task, recognize_sentence_transformer
from runners.modeling.config_checks import (
    check_config,
    describe_config_error,
    refuse_adapter,
    refuse_kernels,
    refuse_other_shapes,
    refuse_weights,
)
from runners.modeling.device_failures import free_memory
from runners.modeling.dtype_selection import list_dtypes, read_capability, read_stored_dtype
from runners.modeling.dtypes import name_dtype
from runners.modeling.matmul_precision import set_matmul_precision
from runners.modeling.meta_device import WithoutCompiler
from runners.modeling.model_files import check_folder, find_file, load_json
from runners.modeling.text_part import encoder_class, take_encoder, take_text_part

logger = logging.getLogger(__name__)

T = TypeVar("T")

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


def resolve_batch_tokens(arguments: Arguments, device: torch.device) -> int:
    """The largest batch in tokens."""
    return arguments.max_batch_tokens or (_BATCH_TOKENS_ON_GPU if device.type == "cuda" else BATCH_TOKENS_ON_CPU)


def load_in_fitting_dtype(arguments: Arguments, device: torch.device, load: Callable[[torch.dtype], T]) -> T:
    """Load a model in the operator's dtype, or with `auto` in the first one that it fits into.

    Args:
        load: loads the model in a dtype. It is called again, for another dtype, once the first model is freed.

    Raises:
        NonFiniteModelError: the model does not fit into the last dtype.
    """
    checkpoint = read_stored_dtype(load_config(arguments)) if arguments.dtype == "auto" else torch.float32
    dtype, *others = list_dtypes(arguments.dtype, checkpoint, read_capability(device))
    for following in others:
        try:
            return load(dtype)
        except NonFiniteModelError as error:
            found = error.found
        # Not in the handler: the error holds the frames of the load, and with them the model.
        gc.collect()
        free_memory(device)
        logger.warning("%s: it is served in %s instead", found, name_dtype(following))
        dtype = following
    return load(dtype)


def load_model(
    arguments: Arguments,
    auto_class: type[Any],
    device: torch.device,
    dtype: torch.dtype,
    unused_prefixes: tuple[str, ...],
    config: PretrainedConfig | None = None,
) -> PreTrainedModel:
    """Load the model for one task, in evaluation mode on its device.

    The weights may be in a memory-mapped file. Call `copy_mapped_weights` when the model's layers are final.

    Args:
        auto_class: the `transformers` auto class of the task.
        dtype: of the weights.
        unused_prefixes: prefixes of weights that may be missing, since the task does not read them.
        config: the model's config; None to read it from the files.

    Raises:
        ModelLoadError: there are no safetensors, weights are missing, which `transformers` would fill with random
            numbers, or weights do not have the shapes that the config says.
    """
    refuse_weights(arguments)
    set_matmul_precision(arguments.matmul_precision, device, dtype)
    try:
        with WithoutCompiler():
            model, report = encoder_class(auto_class, config).from_pretrained(
                arguments.model,
                config=config,
                # Otherwise `transformers` raises an error that does not name the weights.
                ignore_mismatched_sizes=True,
                revision=arguments.model_revision,
                trust_remote_code=arguments.trust_remote_code,
                dtype=dtype,
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
