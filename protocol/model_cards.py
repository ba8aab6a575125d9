"""Models as OpenAI's API describes them; V1's answers about a model have the same fields."""

from __future__ import annotations

import time
from typing import Any

from protocol.openai_paths import OPENAI_PATHS, list_client_paths
from protocol.versions import SERVER_NAME
from runners.core.served_model import ServedModel

_STARTED = int(time.time())


def model_card(model: ServedModel, name: str) -> dict[str, Any]:
    """A model under one of its names, with vLLM's fields beside OpenAI's, and its task and calls.

    `max_model_len`, the most tokens of a sequence, is null until the model is loaded.
    """
    runner = model.runner
    length = runner.properties.get("max_length") if model.ready and runner is not None else None
    return {
        "id": name, "object": "model", "created": _STARTED, "owned_by": SERVER_NAME, "root": model.name,
        "parent": None, "max_model_len": None if length is None else int(length), **describe_calls(model),
    }  # fmt: skip


def describe_calls(model: ServedModel) -> dict[str, Any]:
    """The model's task, and which calls of OpenAI's API and of vLLM's it answers; unknown until it is loaded."""
    runner = model.runner
    if runner is None or not model.ready:
        return {"task": None, "capabilities": []}
    return {"task": runner.task, "capabilities": [OPENAI_PATHS[path].call for path in list_client_paths(runner)]}
