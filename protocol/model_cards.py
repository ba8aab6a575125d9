"""Models as OpenAI's API describes them; V1's answers about a model have the same fields."""

from __future__ import annotations

import time
from typing import Any

from protocol.versions import SERVER_NAME
from runners.core.runner import Runner

_STARTED = int(time.time())


def model_card(runner: Runner, name: str) -> dict[str, Any]:
    """A model under one of its names, with vLLM's fields beside OpenAI's.

    `max_model_len`, the most tokens of a sequence, is null until the model is loaded.
    """
    length = runner.properties.get("max_length") if runner.ready else None
    return {
        "id": name, "object": "model", "created": _STARTED, "owned_by": SERVER_NAME, "root": runner.name,
        "parent": None, "max_model_len": None if length is None else int(length),
    }  # fmt: skip
