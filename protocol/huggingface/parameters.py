"""Every field of a body that some client of the protocol sends: read, without effect, or refused.

The types that parse bodies have the fields that are read. Unknown ones are refused, because one that is misspelt would
change the answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from protocol.huggingface.tasks import HubTask
from protocol.refused_parameters import RefusedParameter
from runners.core.errors import InputError, list_names
from runners.core.request_limits import RequestLimits


def _refusal(advice: str, *neutral: Any) -> RefusedParameter:
    return RefusedParameter(neutral, advice, on_vllm=False)


# The settings of clients for the hosted service, which loads models and keeps answers.
CLIENT_OPTIONS = frozenset({"use_cache", "use_gpu", "wait_for_model"})
# Pipelines pad batches; this server does not.
NO_EFFECT = frozenset({"padding"})
# The fields of a body, which are the same for all tasks.
_BODY = ("inputs", "parameters", "options", "stream")
_LENGTH = _refusal("--max_length of the server limits texts")
_OF_GENERATORS = {
    "adapter_id": _refusal("call an adapter by its name, through OpenAI's API"),
    "watermark": _refusal("outputs have no watermark", False),
}
_OF_SEQUENCES = {
    **_OF_GENERATORS,
    "clean_up_tokenization_spaces": _refusal("spaces stay as the model writes them", False),
}
REFUSED: Mapping[HubTask, Mapping[str, RefusedParameter]] = {
    HubTask.FEATURE_EXTRACTION: {"encoding_format": _refusal("vectors are lists of numbers", "float")},
    HubTask.FILL_MASK: {"max_length": _LENGTH},
    HubTask.QUESTION_ANSWERING: {
        "align_to_words": _refusal("answers are whole words", True),
    },
    HubTask.SENTENCE_SIMILARITY: {},
    HubTask.SUMMARIZATION: _OF_SEQUENCES,
    HubTask.TEXT2TEXT_GENERATION: _OF_SEQUENCES,
    HubTask.TEXT_CLASSIFICATION: {"max_length": _LENGTH},
    HubTask.TEXT_GENERATION: _OF_GENERATORS,
    HubTask.TOKEN_CLASSIFICATION: {},
    HubTask.TRANSLATION: _OF_SEQUENCES,
    HubTask.ZERO_SHOT_CLASSIFICATION: {"max_length": _LENGTH},
}


def read_parameters(
    fields: Mapping[str, Any], form: type[msgspec.Struct], task: HubTask, limits: RequestLimits
) -> dict[str, Any]:
    """The parameters in a body that the form reads; those of feature extraction also stand beside `inputs`.

    Raises:
        LimitExceededError: there are more than the operator allows.
        InputError: a field or a parameter is unknown, or asks for what this server does not do.
    """
    parameters, options = (_read_object(fields, name, limits) for name in ("parameters", "options"))
    _refuse_unknown(options, CLIENT_OPTIONS, task, "options")
    beside = {name: value for name, value in fields.items() if name not in _BODY}
    known = list_fields(form)
    if task is not HubTask.FEATURE_EXTRACTION:
        _refuse_unknown(beside, _BODY, task, "the body")
    else:
        beside = _keep_known(beside, known, task, "the body")
    kept = _keep_known(parameters, known, task, "parameters")
    for name in beside:
        if name in kept and None not in (kept[name], beside[name]):
            raise InputError(f"{name} is in parameters and beside inputs; give it once", name)
    return {**kept, **{name: value for name, value in beside.items() if value is not None}}


def _read_object(fields: Mapping[str, Any], name: str, limits: RequestLimits) -> dict[str, Any]:
    value = fields.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} must be an object", name)
    limits.check("max_parameters", len(value), name, name)
    return value


def _keep_known(parameters: Mapping[str, Any], known: Collection[str], task: HubTask, where: str) -> dict[str, Any]:
    kept = {}
    for name, value in parameters.items():
        if (refusal := REFUSED[task].get(name)) is not None:
            refusal.check(name, value, where)
        elif name not in NO_EFFECT:
            kept[name] = value
    _refuse_unknown(kept, known, task, where)
    return kept


def _refuse_unknown(names: Iterable[str], known: Collection[str], task: HubTask, where: str) -> None:
    for name in names:
        if name not in known:
            listed = f"there are {list_names(sorted(known))}" if known else "there are none"
            raise InputError(f"{where} has {name}, which {task} does not have; {listed}", name)


def list_fields(form: type[msgspec.Struct]) -> list[str]:
    """The names of the fields that a type reads."""
    return [field.name for field in msgspec.structs.fields(form)]
