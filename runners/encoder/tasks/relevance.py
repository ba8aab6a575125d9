"""The activation that turns a cross-encoder's logit into a score, chosen as `CrossEncoder` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from runners.core.answer_options import ScoreFunction
from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.modeling.model_files import load_json

_FUNCTION_BY_NAME = {"Sigmoid": ScoreFunction.SIGMOID, "Identity": ScoreFunction.NONE}


def load_activation(arguments: Arguments, config: PretrainedConfig) -> ScoreFunction:
    """The activation that the model's files name; a sigmoid if they name none.

    Raises:
        ModelLoadError: the files ask for something that this server does not support, so that scores would be wrong.
    """
    # sentence-transformers reads its config file only if there is a modules.json.
    saved = load_json(arguments, "modules.json") is not None
    settings = (load_json(arguments, "config_sentence_transformers.json") if saved else None) or {}
    if (settings.get("prompts") or {}).get(settings.get("default_prompt_name")):
        raise ModelLoadError(
            "it has a prompt by default (default_prompt_name), which this server does not support for pairs"
        )
    named = _find_name(settings, config)
    if named is None:
        return ScoreFunction.SIGMOID
    module, _, name = named.rpartition(".")
    function = _FUNCTION_BY_NAME.get(name)
    if function is None or not module.startswith("torch.nn"):
        raise ModelLoadError(
            f"its scores are made by {named}, which this server does not run; it runs torch's "
            f"{' and '.join(_FUNCTION_BY_NAME)} (--task=sequence_classification serves the model without scores)"
        )
    return function


def _find_name(settings: Mapping[str, Any], config: PretrainedConfig) -> str | None:
    """Name of the activation: sentence-transformers 6 writes it to its own file, older releases to config.json."""
    newer = getattr(config, "sentence_transformers", None) or {}
    older: str | None = getattr(config, "sbert_ce_default_activation_function", None)
    return settings.get("activation_fn") or newer.get("activation_fn") or older
