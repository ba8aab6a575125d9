"""Task names, and the task that an architecture is made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum

from runners.core.errors import ModelLoadError


class Task(StrEnum):
    """The tasks this server runs, under KServe's names."""

    FILL_MASK = "fill_mask"
    QUESTION_ANSWERING = "question_answering"
    SEQUENCE_CLASSIFICATION = "sequence_classification"
    # SPLADE; KServe has no such task.
    SPARSE_EMBEDDING = "sparse_embedding"
    TEXT2TEXT_GENERATION = "text2text_generation"
    TEXT_EMBEDDING = "text_embedding"
    TEXT_GENERATION = "text_generation"
    # The hub's name for the task of cross-encoders; KServe has no such task.
    TEXT_RANKING = "text_ranking"
    TOKEN_CLASSIFICATION = "token_classification"
    ZERO_SHOT_CLASSIFICATION = "zero_shot_classification"


# The beginning of the name of an NLI model's class for "the hypothesis follows from the text", in lower case.
ENTAILMENT = "entail"
GENERATION = frozenset({Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION})

# KServe's order matters: "TapasForQuestionAnswering" also ends with "ForQuestionAnswering", "MTModel" with "Model".
# The bare encoder ("BertModel" and its like) comes last; KServe cannot infer it.
_TASK_BY_SUFFIX: tuple[tuple[str, str], ...] = (
    ("TapasForQuestionAnswering", "table_question_answering"),
    ("ForQuestionAnswering", Task.QUESTION_ANSWERING),
    ("ForQuestionAnsweringSimple", Task.QUESTION_ANSWERING),
    ("ForTokenClassification", Task.TOKEN_CLASSIFICATION),
    ("ForSequenceClassification", Task.SEQUENCE_CLASSIFICATION),
    ("ForMultipleChoice", "multiple_choice"),
    ("ForMaskedLM", Task.FILL_MASK),
    ("ForCausalLM", Task.TEXT_GENERATION),
    ("LMHeadModel", Task.TEXT_GENERATION),
    ("ForConditionalGeneration", Task.TEXT2TEXT_GENERATION),
    ("MTModel", Task.TEXT2TEXT_GENERATION),
    ("EncoderDecoderModel", Task.TEXT2TEXT_GENERATION),
    ("ForPrediction", "time_series_forecast"),
    ("Model", Task.TEXT_EMBEDDING),
    ("Encoder", Task.TEXT_EMBEDDING),
)


def servable_tasks() -> str:
    """The tasks as one readable list."""
    return ", ".join(sorted(Task))


def read_architectures(config: object) -> list[str]:
    """The `architectures` of a parsed config.json; a single name counts as a list.

    Raises:
        ModelLoadError: the config is no object, or its architectures are no names.
    """
    if not isinstance(config, Mapping):
        raise ModelLoadError("the model's config.json is no JSON object")
    listed = config.get("architectures") or []
    names = [listed] if isinstance(listed, str) else listed
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelLoadError(f"architectures in the model's config.json is {listed!r}, not a list of class names")
    return names


def recognize_sentence_transformer(modules: object, settings: object) -> Task | None:
    """The task of a model by its sentence-transformers files, whatever its architecture is.

    Only a SentenceTransformer that pools tokens, and a SparseEncoder that pools scores of the vocabulary, have one: a
    cross-encoder's architecture says enough.

    Args:
        modules: the parsed modules.json, None where there is none.
        settings: the parsed config_sentence_transformers.json, None where there is none.
    """
    model_type = settings.get("model_type") if isinstance(settings, Mapping) else None
    if not isinstance(modules, list):
        return None
    kinds = {str(module.get("type")).rpartition(".")[2] for module in modules if isinstance(module, Mapping)}
    if model_type in (None, "SparseEncoder") and "SpladePooling" in kinds:
        return Task.SPARSE_EMBEDDING
    if model_type in (None, "SentenceTransformer") and {"Transformer", "Pooling"} <= kinds:
        return Task.TEXT_EMBEDDING
    return None


def infer_task(architectures: Sequence[str] | None) -> Task:
    """Infer the task from all `architectures` of a model's config.

    A task head is preferred over the bare encoder wherever it stands in the list.

    Raises:
        ModelLoadError: no architecture names a task that this server runs.
    """
    if not architectures:
        raise ModelLoadError(
            f"the model's config.json names no architecture, so its task is unknown: "
            f"set --task to one of {servable_tasks()}"
        )
    tasks = {_task_of(architecture) for architecture in architectures}
    served = [task for _, task in _TASK_BY_SUFFIX if isinstance(task, Task) and task in tasks]
    if served:
        return served[0]
    names = ", ".join(architectures)
    if unserved := sorted(task for task in tasks if task is not None):
        raise ModelLoadError(
            f"{names} is made for {', '.join(unserved)}, which this server does not run; "
            f"it runs {servable_tasks()}: set --task to one of them if the model can do it"
        )
    raise ModelLoadError(f"no task can be inferred from {names}: set --task to one of {servable_tasks()}")


def _task_of(architecture: str) -> str | None:
    return next((task for suffix, task in _TASK_BY_SUFFIX if architecture.endswith(suffix)), None)
