"""What decides the answers of a model, so that a job goes on with the same model only."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from runners.core.argument_groups import AnswerArguments, ModelArguments
from runners.core.declarations import ModelDeclaration
from runners.core.redaction import redact
from runners.core.version import VERSION

# The arguments that decide the answers, beside those of a model and of its answers; names decide nothing.
_DECIDING = ("predictor_host", "matmul_precision", "max_text_characters", "max_whole_text_characters")
_NAMES = frozenset({"model_name", "model_dir", "model_id"})


def describe_job_model(model: ModelDeclaration) -> dict[str, Any]:
    """What decides the answers to a text: the model and its arguments, of which nothing is secret."""
    arguments = model.arguments
    names = {*ModelArguments.model_fields, *AnswerArguments.model_fields, *_DECIDING} - _NAMES
    files = sorted((path, state and state[2:]) for path, state in model.describe_files())
    engine = {name: argument.value for name, argument in sorted(arguments.engine.items())}
    return {
        "version": VERSION,
        "model": redact(arguments.model),
        "model_version": model.version,
        "model_files": _digest(files),
        **arguments.model_dump(mode="json", include=names),
        "vllm_arguments": _digest(engine),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
