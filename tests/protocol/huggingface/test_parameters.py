"""Fields and parameters that are read, have no effect, or are refused."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from huggingface_hub.inference._generated import types

from protocol.huggingface.answers import ENCODER_CALLS
from protocol.huggingface.parameters import NO_EFFECT, OPTIONS, REFUSED, list_fields
from protocol.huggingface.tasks import HubTask
from tests.protocol.conftest import Run

INPUTS: dict[HubTask, tuple[str, Any]] = {
    HubTask.FEATURE_EXTRACTION: ("text_embedding", "I love Munich"),
    HubTask.FILL_MASK: ("fill_mask", "I love [MASK]"),
    HubTask.QUESTION_ANSWERING: ("question_answering", {"question": "Who?", "context": "Sarah"}),
    HubTask.SENTENCE_SIMILARITY: ("text_embedding", {"source_sentence": "a", "sentences": ["b"]}),
    HubTask.TEXT_CLASSIFICATION: ("sequence_classification", "I love Munich"),
    HubTask.TOKEN_CLASSIFICATION: ("token_classification", "I love Munich"),
    HubTask.ZERO_SHOT_CLASSIFICATION: ("zero_shot_classification", "I love Munich"),
}
NEEDED = {HubTask.ZERO_SHOT_CLASSIFICATION: {"candidate_labels": ["a"]}}


def ask(run: Run, task: HubTask, parameters: dict[str, Any], **fields: Any) -> tuple[int, Any]:
    kind, inputs = INPUTS[task]
    body = {"inputs": inputs, "parameters": {**NEEDED.get(task, {}), **parameters}, **fields}
    response = run(kind).client.post(f"/pipeline/{task}", json=body)
    return response.status_code, response.json()


@pytest.mark.parametrize("task", ENCODER_CALLS)
def test_every_parameter_of_the_published_schema_is_known(task: HubTask) -> None:
    """The client's dataclasses are generated from the schemas."""
    name = "".join(word.title() for word in task.split("-"))
    parameters = getattr(types, f"{name}Parameters", None) or getattr(types, f"{name}Input")
    published = {*parameters.__dataclass_fields__} - {"inputs", "parameters"}
    assert published <= {*list_fields(ENCODER_CALLS[task].parameters), *REFUSED[task]}


@pytest.mark.parametrize(
    ("task", "name"), chain.from_iterable([(task, name) for name in REFUSED[task]] for task in REFUSED)
)
def test_refused_parameters(task: HubTask, name: str, run: Run) -> None:
    status, plain = ask(run, task, {})
    assert status == 200
    refusal = REFUSED[task][name]
    for value in (None, *refusal.neutral):
        assert ask(run, task, {name: value}) == (200, plain)
    for value in {False, 7, "left"}.difference(refusal.neutral):
        expected = f"parameters has {name}, which is not supported here: {refusal.advice}"
        assert ask(run, task, {name: value}) == (400, {"error": expected, "error_type": "validation"})


@pytest.mark.parametrize("task", ENCODER_CALLS)
def test_unknown_parameters(task: HubTask, run: Run) -> None:
    topk: dict[str, Any] = {"topk": 1}
    cases: list[dict[str, Any]] = [{"parameters": topk}, {"parameters": {"topk": None}}, topk, {"options": topk}]
    for case in cases:
        fields = dict(case)
        place = next(iter(fields)).replace("topk", "the body")
        status, answer = ask(run, task, fields.pop("parameters", {}), **fields)
        assert status == 400
        assert answer["error"].startswith(f"{place} has topk, which {task} does not have; there are ")


@pytest.mark.parametrize("task", ENCODER_CALLS)
def test_what_has_no_effect(task: HubTask, run: Run) -> None:
    _, plain = ask(run, task, {})
    assert ask(run, task, dict.fromkeys(NO_EFFECT, True), options=dict.fromkeys(OPTIONS, True), stream=False) == (
        200,
        plain,
    )
    known = dict.fromkeys(list_fields(ENCODER_CALLS[task].parameters))
    assert ask(run, task, {**known, **NEEDED.get(task, {})}) == (200, plain)


@pytest.mark.parametrize(
    ("value", "is_cut"), [(True, True), ("longest_first", True), (False, False), ("do_not_truncate", False)]
)
def test_truncation(value: Any, is_cut: bool, run: Run) -> None:
    body = {"inputs": "word " * 600, "parameters": {"truncation": value}}
    response = run("sequence_classification").client.post("/", json=body)
    assert (response.status_code == 200) == is_cut
    assert is_cut or response.json()["error"].startswith("text 0 cannot be served: it has 602 tokens")
