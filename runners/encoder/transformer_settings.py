"""The settings of a transformer in a model's sentence-transformers files: for its config, tokenizer and texts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.modeling.model_files import load_json

logger = logging.getLogger(__name__)

# sentence-transformers reads the first of these files that exists and is not empty.
_FILENAMES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# The names in files of releases before 6; if a file has both names, the old one wins.
_OLD_NAMES = {"processor_kwargs": "tokenizer_args", "config_kwargs": "config_args", "model_kwargs": "model_args"}
# The operator decides where a model comes from and whether its code runs. sentence-transformers ignores these too.
_OPERATOR_DECIDES = frozenset(
    {"cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code"}
)
# Allowed only as null; every other value is refused.
_ONLY_NULL = ("query_length", "document_length", "query_expansion", "tokenizer_name_or_path")
_SUPPORTED = frozenset({"max_seq_length", "do_lower_case", "modality_config", "processing_kwargs"})
# This server has its own forward pass, without padding.
_WITHOUT_EFFECT = frozenset({"unpad_inputs", "backend", "cache_dir"})
_MODEL_WITHOUT_EFFECT = frozenset(
    {
        "add_pooling_layer", "attn_implementation", "device_map", "export", "file_name", "low_cpu_mem_usage",
        "provider", "use_safetensors",
    }
)  # fmt: skip
_DTYPES = frozenset({"dtype", "torch_dtype"})
_TOKENIZER_WITHOUT_EFFECT = frozenset({"use_fast"})
_TOKENIZER_UNSUPPORTED = frozenset({"backend", "config", "gguf_file", "tokenizer_type"})
_PROCESSING_WITHOUT_EFFECT = frozenset(
    {
        "logits_to_keep", "pad_to_multiple_of", "padding", "padding_side", "return_attention_mask", "return_tensors",
        "verbose",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TransformerOutput:
    """How sentence-transformers names the task of a transformer and its output.

    Attributes:
        transformer_task: the task, as `transformers` pipelines name it.
        method_output_name: the output of the `transformers` model that is used.
        module_output_name: the name of this output among those of sentence-transformers.
    """

    transformer_task: str
    method_output_name: str
    module_output_name: str


EMBEDDER = TransformerOutput("feature-extraction", "last_hidden_state", "token_embeddings")
SPARSE_ENCODER = TransformerOutput("fill-mask", "logits", "token_embeddings")
CROSS_ENCODER = TransformerOutput("sequence-classification", "logits", "scores")


@dataclass(frozen=True, slots=True)
class TransformerSettings:
    """How sentence-transformers loads a transformer and prepares texts.

    Attributes:
        max_length: longest text in tokens; it wins over the tokenizer's limit.
        lower_case: whether texts are lower-cased first.
        tokenizer: keyword arguments to load the tokenizer with.
        config: keyword arguments to load the config with.
    """

    max_length: int | None = None
    lower_case: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def load_transformer_settings(arguments: Arguments, output: TransformerOutput | None) -> TransformerSettings:
    """Read the settings of an embedder, a sparse encoder or a cross-encoder.

    As in sentence-transformers, a model without modules.json has none.

    Args:
        output: the output that the task reads; None for a task that sentence-transformers does not have.

    Raises:
        ModelLoadError: a setting that would change the scores is not supported; the message names it.
    """
    if output is None or load_json(arguments, "modules.json") is None:
        return TransformerSettings()
    filename, settings = next(
        ((name, found) for name in _FILENAMES if (found := load_json(arguments, name))), (_FILENAMES[0], {})
    )
    if not isinstance(settings, dict):
        raise ModelLoadError(f"{arguments.model}/{filename} is no JSON object")
    groups = {new: _read_group(settings, new, old, filename) for new, old in _OLD_NAMES.items()}
    names = {*_SUPPORTED, *_WITHOUT_EFFECT, *_OLD_NAMES, *_OLD_NAMES.values()}
    plain: dict[str, tuple[str | None, ...]] = {
        "transformer_task": (None, output.transformer_task),
        "module_output_name": (None, output.module_output_name),
        **dict.fromkeys(_ONLY_NULL, (None,)),
    }
    for name, value in settings.items():
        if name not in names and value not in plain.get(name, ()):
            raise _unsupported(filename, name, value)
    _check_modalities(settings.get("modality_config"), output, filename)
    _check_model(groups["model_kwargs"], filename)
    tokenizer = groups["processor_kwargs"]
    for name, value in tokenizer.items():
        if name in _TOKENIZER_UNSUPPORTED or name.endswith("_file"):
            raise _unsupported(filename, f"processor_kwargs.{name}", value)
    lengths = {
        "processing_kwargs.text.max_length": _read_processing(arguments, settings.get("processing_kwargs"), filename),
        "processor_kwargs.model_max_length": tokenizer.pop("model_max_length", None),
        "max_seq_length": settings.get("max_seq_length"),
    }
    return TransformerSettings(
        max_length=_pick_length(lengths, filename),
        lower_case=bool(settings.get("do_lower_case")),
        tokenizer={name: value for name, value in tokenizer.items() if name not in _TOKENIZER_WITHOUT_EFFECT},
        config=groups["config_kwargs"],
    )


def _read_group(settings: Mapping[str, Any], name: str, old_name: str, filename: str) -> dict[str, Any]:
    group = _as_object(settings.get(old_name, settings.get(name)), name, filename)
    return {key: value for key, value in group.items() if key not in _OPERATOR_DECIDES}


def _as_object(value: Any, name: str, filename: str) -> Mapping[str, Any]:
    """A group of settings; null is an empty group.

    Raises:
        ModelLoadError: the value is no JSON object.
    """
    if not isinstance(value or {}, dict):
        raise ModelLoadError(f"{name} in {filename} is {value!r:.80}, not an object")
    return value or {}


def _check_modalities(modalities: object, output: TransformerOutput, filename: str) -> None:
    if modalities is None:
        return
    # sentence-transformers 6 writes `message` for language models: every text becomes a chat message.
    if isinstance(modalities, dict) and "message" in modalities:
        raise ModelLoadError(
            "its texts go through a chat template (modality_config), which this server does not support"
        )
    text = {"method": "forward", "method_output_name": output.method_output_name}
    if not isinstance(modalities, dict) or modalities.get("text") != text:
        raise _unsupported(filename, "modality_config", modalities)


def _check_model(group: Mapping[str, Any], filename: str) -> None:
    for name, value in group.items():
        if name in _DTYPES:
            logger.info("model_kwargs.%s in %s is %s; here --dtype sets the model's dtype", name, filename, value)
        elif name not in _MODEL_WITHOUT_EFFECT:
            raise _unsupported(filename, f"model_kwargs.{name}", value)


def _read_processing(arguments: Arguments, value: Any, filename: str) -> Any:
    """The `max_length` in `processing_kwargs`, if there is one."""
    groups = _as_object(value, "processing_kwargs", filename)
    length = None
    # `common` comes last, since it wins over the modality.
    for modality in ("text", "common"):
        group = _as_object(groups.get(modality), f"processing_kwargs.{modality}", filename)
        for name, value in group.items():
            match name:
                case "max_length":
                    length = value
                case "truncation" if value in (True, "longest_first", "only_first"):
                    pass
                case "add_special_tokens" if value or arguments.disable_special_tokens:
                    pass
                case "add_special_tokens":
                    raise ModelLoadError(
                        f"processing_kwargs.{modality}.{name} in {filename} is false: set --disable_special_tokens"
                    )
                case _ if name not in _PROCESSING_WITHOUT_EFFECT:
                    raise _unsupported(filename, f"processing_kwargs.{modality}.{name}", value)
    return length


def _pick_length(lengths: Mapping[str, Any], filename: str) -> int | None:
    """The first length that is set."""
    for name, length in lengths.items():
        if length is None:
            continue
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise ModelLoadError(f"{name} in {filename} is {length!r}, not a number of tokens")
        return length
    return None


def _unsupported(filename: str, name: str, value: object) -> ModelLoadError:
    return ModelLoadError(f"{name} in {filename} is {str(value)[:80]!r}, which this server does not support")
