"""What makes a score of a cross-encoder's logit, as sentence-transformers' `CrossEncoder` chooses it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from runners.answers import ScoreFunction
from runners.arguments import Arguments
from runners.errors import ModelLoadError
from runners.model_files import load_json

_FUNCTION_BY_NAME = {"Sigmoid": ScoreFunction.SIGMOID, "Identity": ScoreFunction.NONE}


def load_activation(arguments: Arguments, config: PretrainedConfig) -> ScoreFunction:
    """The function that the model's files name; a sigmoid where they name none.

    Raises:
        ModelLoadError: they ask for something that this server does not do, so that its scores would be wrong.
    """
    # Which sentence-transformers reads only of a model that has the list of its modules too.
    saved = load_json(arguments, "modules.json") is not None
    own = (load_json(arguments, "config_sentence_transformers.json") if saved else None) or {}
    if (own.get("prompts") or {}).get(own.get("default_prompt_name")):
        raise ModelLoadError(
            "it has a prompt by default (default_prompt_name), which this server does not put in pairs"
        )
    named = _find_name(own, config)
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


def _find_name(own: Mapping[str, Any], config: PretrainedConfig) -> str | None:
    """The name that sentence-transformers 6 writes in a file of its own, 4 and 5 in config.json, or those before it."""
    newer = getattr(config, "sentence_transformers", None) or {}
    older: str | None = getattr(config, "sbert_ce_default_activation_function", None)
    return own.get("activation_fn") or newer.get("activation_fn") or older
