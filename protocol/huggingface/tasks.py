"""The hub's names of tasks, in paths, and which models answer them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from protocol.http.errors import NotFoundError
from runners.core.runner import Runner
from runners.core.task import GENERATION, Task


class HubTask(StrEnum):
    """The tasks under the names of the hub, whose JSON schemas define their bodies and answers.

    https://github.com/huggingface/huggingface.js/tree/main/packages/tasks/src/tasks
    """

    FEATURE_EXTRACTION = "feature-extraction"
    FILL_MASK = "fill-mask"
    QUESTION_ANSWERING = "question-answering"
    SENTENCE_SIMILARITY = "sentence-similarity"
    SUMMARIZATION = "summarization"
    TEXT2TEXT_GENERATION = "text2text-generation"
    TEXT_CLASSIFICATION = "text-classification"
    TEXT_GENERATION = "text-generation"
    TOKEN_CLASSIFICATION = "token-classification"
    TRANSLATION = "translation"
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"


# The tasks of the models that answer each task.
SERVED: Mapping[HubTask, frozenset[Task]] = {
    HubTask.FEATURE_EXTRACTION: frozenset({Task.TEXT_EMBEDDING}),
    HubTask.FILL_MASK: frozenset({Task.FILL_MASK}),
    HubTask.QUESTION_ANSWERING: frozenset({Task.QUESTION_ANSWERING}),
    HubTask.SENTENCE_SIMILARITY: frozenset({Task.TEXT_EMBEDDING}),
    # As a pipeline does, with the classes of models that are made for more.
    HubTask.TEXT_CLASSIFICATION: frozenset(
        {Task.SEQUENCE_CLASSIFICATION, Task.TEXT_RANKING, Task.ZERO_SHOT_CLASSIFICATION}
    ),
    HubTask.TEXT_GENERATION: frozenset({Task.TEXT_GENERATION}),
    HubTask.TOKEN_CLASSIFICATION: frozenset({Task.TOKEN_CLASSIFICATION}),
    HubTask.ZERO_SHOT_CLASSIFICATION: frozenset({Task.ZERO_SHOT_CLASSIFICATION}),
    # What such a model does is not known: the first is the task of a request that names none.
    HubTask.TEXT2TEXT_GENERATION: frozenset({Task.TEXT2TEXT_GENERATION}),
    HubTask.SUMMARIZATION: frozenset({Task.TEXT2TEXT_GENERATION}),
    HubTask.TRANSLATION: frozenset({Task.TEXT2TEXT_GENERATION}),
}
# Other names that pipelines have.
_ALIASES = {"ner": HubTask.TOKEN_CLASSIFICATION, "sentiment-analysis": HubTask.TEXT_CLASSIFICATION}


def read_task(name: str) -> HubTask:
    """
    Raises:
        NotFoundError: there is no task of that name.
    """
    if name in _ALIASES:
        return _ALIASES[name]
    try:
        return HubTask(name)
    except ValueError:
        raise NotFoundError(f"there is no task {name}; there are {', '.join(HubTask)}") from None


def serves_task(runner: Runner, task: HubTask | None) -> bool:
    """Whether a model answers a task; None for any task."""
    tasks = frozenset().union(*SERVED.values()) if task is None else SERVED[task]
    if (generator := runner.generator) is not None:
        # The task of a generator is unknown until it is loaded.
        known = {runner.task} if runner.task is not None else GENERATION
        return generator.generates and not tasks.isdisjoint(known)
    return runner.task in tasks


def choose_task(runner: Runner, fields: Mapping[str, Any]) -> HubTask:
    """The task of a request whose path names none.

    Args:
        fields: the fields of its body.
    """
    match runner.task:
        case Task.TEXT_EMBEDDING:
            is_comparison = isinstance(fields.get("inputs"), dict)
            return HubTask.SENTENCE_SIMILARITY if is_comparison else HubTask.FEATURE_EXTRACTION
        case Task.ZERO_SHOT_CLASSIFICATION:
            parameters = fields.get("parameters")
            has_labels = isinstance(parameters, dict) and "candidate_labels" in parameters
            is_zero_shot = has_labels or runner.default_options.answer.candidate_labels
            return HubTask.ZERO_SHOT_CLASSIFICATION if is_zero_shot else HubTask.TEXT_CLASSIFICATION
    return next(task for task, tasks in SERVED.items() if runner.task in tasks)
