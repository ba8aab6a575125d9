"""`/info`: what a model is, and the limits of its requests."""

from __future__ import annotations

from typing import Any

from protocol.versions import SERVER_VERSION
from runners.core.arguments import Arguments
from runners.core.hub_commit import find_commit
from runners.core.predictions import LOGITS
from runners.core.runner import Runner
from runners.core.task import Task

_CLASSIFIERS = (Task.SEQUENCE_CLASSIFICATION, Task.ZERO_SHOT_CLASSIFICATION)
_EMBEDDERS = (Task.TEXT_EMBEDDING, Task.SPARSE_EMBEDDING)
# That server's names of poolings, where they are not those of sentence-transformers.
_POOLINGS = {"lasttoken": "last_token"}


def describe_model(runner: Runner, arguments: Arguments) -> dict[str, Any]:
    """The answer to `/info`.

    Args:
        arguments: those of the model.
    """
    return {
        "model_id": arguments.model_id or runner.name,
        "model_sha": find_commit(arguments.model),
        "model_dtype": runner.details.dtype,
        "served_model_name": runner.name,
        "model_type": _describe_type(runner),
        "max_concurrent_requests": arguments.max_concurrent_requests,
        "max_input_length": runner.max_length,
        "max_batch_tokens": runner.max_batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": arguments.max_client_batch_size,
        "auto_truncate": runner.default_options.overflow.truncation,
        "tokenization_workers": runner.tokenizer_threads,
        "version": SERVER_VERSION,
        "sha": None,
        "docker_label": None,
    }


def count_classes(runner: Runner) -> int:
    """How many classes a model has that scores classes, or that ranks."""
    return next(spec.shape[-1] for spec in runner.named_outputs() if spec.name == LOGITS)


def _describe_type(runner: Runner) -> dict[str, Any]:
    """That server's type of the model; of a task that it does not have, the task's name."""
    task = runner.task
    if task in _EMBEDDERS:
        pooling = runner.properties["pooling"]
        return {"embedding": {"pooling": _POOLINGS.get(pooling, pooling)}}
    if task is Task.TEXT_RANKING or task in _CLASSIFIERS:
        names = [runner.class_name(index) for index in range(count_classes(runner))]
        described = {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
        return {"reranker" if task is Task.TEXT_RANKING else "classifier": described}
    return {str(task): {}}
