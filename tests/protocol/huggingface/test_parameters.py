"""Fields and parameters that are read, have no effect, or are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

import pytest
from huggingface_hub.inference._generated import types
from starlette.testclient import TestClient

from protocol.huggingface.answers import ENCODER_FORMS
from protocol.huggingface.generation import GENERATION_FORMS
from protocol.huggingface.parameters import CLIENT_OPTIONS, NO_EFFECT, REFUSED, list_fields
from protocol.huggingface.tasks import HubTask
from tests.conftest import GeneratorFolder, Serve
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
SEQUENCES = (HubTask.SUMMARIZATION, HubTask.TEXT2TEXT_GENERATION, HubTask.TRANSLATION)
NEEDED: dict[HubTask, dict[str, Any]] = {
    HubTask.ZERO_SHOT_CLASSIFICATION: {"candidate_labels": ["a"]},
    HubTask.TEXT_GENERATION: {"max_new_tokens": 3},
}
FORMS: dict[HubTask, type[Any]] = {
    **{task: call.parameters for task, call in ENCODER_FORMS.items()},
    **{task: form.parameters for task, form in GENERATION_FORMS.items()},
}
Ask = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def ask(run: Run, serve: Serve, generator_folder: GeneratorFolder) -> Ask:
    """`ask(task, {"top_k": 1}, options={})`: the status and the answer."""

    @cache
    def start(family: str) -> TestClient:
        return serve(model_dir=generator_folder(family), backend="huggingface").client

    def post(task: HubTask, parameters: dict[str, Any], **fields: Any) -> tuple[int, Any]:
        kind, inputs = INPUTS.get(task, ("", "return the value"))
        client = run(kind).client if kind else start("t5" if task in SEQUENCES else "llama")
        body = {"inputs": inputs, "parameters": {**NEEDED.get(task, {}), **parameters}, **fields}
        response = client.post(f"/pipeline/{task}", json=body)
        return response.status_code, response.json()

    return post


@pytest.mark.parametrize("task", FORMS)
def test_every_parameter_of_the_published_schema_is_known(task: HubTask) -> None:
    """The client's dataclasses are generated from the schemas."""
    name = "".join(word.title() for word in task.split("-"))
    names = [f"{name}{suffix}" for suffix in ("Parameters", "InputGenerateParameters", "Input")]
    parameters = next(getattr(types, each) for each in names if hasattr(types, each))
    # What is in the last one is read as if it was beside it.
    published = {*parameters.__dataclass_fields__} - {"inputs", "parameters", "generate_parameters"}
    assert published <= {*list_fields(FORMS[task]), *REFUSED[task]}


@pytest.mark.parametrize(
    ("task", "name"), chain.from_iterable([(task, name) for name in REFUSED[task]] for task in REFUSED)
)
def test_refused_parameters(task: HubTask, name: str, ask: Ask) -> None:
    status, plain = ask(task, {})
    assert status == 200
    refusal = REFUSED[task][name]
    for value in (None, *refusal.neutral):
        assert ask(task, {name: value}) == (200, plain)
    # In Python, 1 equals true, but not as JSON.
    neutral = [*map(json.dumps, refusal.neutral)]
    for value in (False, True, 0, 1, 7, "left"):
        if json.dumps(value) in neutral:
            continue
        expected = f"{name} in parameters is not supported here; {refusal.advice}"
        assert ask(task, {name: value}) == (400, {"error": expected, "error_type": "validation"})


@pytest.mark.parametrize("task", FORMS)
def test_unknown_parameters(task: HubTask, ask: Ask) -> None:
    topk: dict[str, Any] = {"topk": 1}
    cases: list[dict[str, Any]] = [{"parameters": topk}, {"parameters": {"topk": None}}, topk, {"options": topk}]
    for case in cases:
        fields = dict(case)
        place = next(iter(fields)).replace("topk", "the body")
        status, answer = ask(task, fields.pop("parameters", {}), **fields)
        assert status == 400
        assert answer["error"].startswith(f"{place} has topk, which {task} does not have; there are ")


@pytest.mark.parametrize("task", FORMS)
def test_what_has_no_effect(task: HubTask, ask: Ask) -> None:
    _, plain = ask(task, {})
    assert ask(task, dict.fromkeys(NO_EFFECT, True), options=dict.fromkeys(CLIENT_OPTIONS, True), stream=False) == (
        200,
        plain,
    )
    known = dict.fromkeys(list_fields(FORMS[task]))
    assert ask(task, {**known, **NEEDED.get(task, {})}) == (200, plain)


def test_parameters_beside_inputs(ask: Ask) -> None:
    _, expected = ask(HubTask.FEATURE_EXTRACTION, {"dimensions": 8})
    assert len(expected[0]) == 8
    assert ask(HubTask.FEATURE_EXTRACTION, {"dimensions": 8}, dimensions=None) == (200, expected)
    assert ask(HubTask.FEATURE_EXTRACTION, {"dimensions": None}, dimensions=8) == (200, expected)
    status, answer = ask(HubTask.FEATURE_EXTRACTION, {"dimensions": 8}, dimensions=9)
    assert (status, answer["error"]) == (400, "dimensions is in parameters and beside inputs; give it once")


@pytest.mark.parametrize(
    ("value", "is_cut"), [(True, True), ("longest_first", True), (False, False), ("do_not_truncate", False)]
)
def test_truncation(value: Any, is_cut: bool, run: Run) -> None:
    body = {"inputs": "word " * 600, "parameters": {"truncation": value}}
    response = run("sequence_classification").client.post("/", json=body)
    assert (response.status_code == 200) == is_cut
    assert is_cut or response.json()["error"].startswith("text 0 cannot be served: it has 602 tokens")


@pytest.mark.parametrize(
    ("inputs", "value", "message"),
    [
        ({"text": "a", "text_pair": "b"}, "only_first", "truncation of pairs can be longest_first"),
        (["a", ["a", "b"]], "only_first", "truncation of pairs can be longest_first"),
        ("a", "only_second", "the body is not as expected: Invalid enum value 'only_second' - at `$.parameters.truncation`"),
    ],
)  # fmt: skip
def test_one_text_of_a_pair_is_not_truncated(inputs: Any, value: str, message: str, run: Run) -> None:
    """`longest_first` is the only strategy, and of a single text `only_first` is the same."""
    client = run("sequence_classification").client
    response = client.post("/", json={"inputs": inputs, "parameters": {"truncation": value}})
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)
    texts = {"inputs": ["word " * 600], "parameters": {"truncation": "only_first"}}
    assert client.post("/", json=texts).json() == client.post("/", json={"inputs": texts["inputs"]}).json()


@pytest.mark.parametrize(
    ("task", "operator", "older", "newer"),
    [
        ("sequence_classification", {"top_k": 1}, {"return_all_scores": True}, {"top_k": 5}),
        ("sequence_classification", {}, {"return_all_scores": False}, {"top_k": 1}),
        ("token_classification", {"aggregation_strategy": "none"}, {"grouped_entities": True}, {"aggregation_strategy": "simple"}),
        ("token_classification", {}, {"grouped_entities": False}, {"aggregation_strategy": "none"}),
        ("question_answering", {"max_length": 64}, {"max_seq_len": 64, "max_question_len": 2}, {}),
    ],
)  # fmt: skip
def test_older_names_mean_what_pipelines_make_of_them(
    task: str, operator: dict[str, Any], older: dict[str, Any], newer: dict[str, Any], run: Run
) -> None:
    """Whatever the operator's defaults are."""
    client = run(task, **operator).client
    inputs = {"question": "Who is it?", "context": "Sarah. " * 100} if task == "question_answering" else "I love Munich"
    found, expected = (
        client.post("/", json={"inputs": inputs, "parameters": parameters}).json() for parameters in (older, newer)
    )
    assert found == expected
    both = client.post("/", json={"inputs": inputs, "parameters": {**older, **newer}})
    assert both.status_code == (400 if newer else 200)


def test_the_length_of_windows_is_the_server_s(run: Run) -> None:
    body = {"inputs": {"question": "Who?", "context": "Sarah"}, "parameters": {"max_seq_len": 384}}
    response = run("question_answering", max_length=64).client.post("/", json=body)
    assert (response.status_code, response.json()["error"]) == (
        400, "max_seq_len can only be 64 here: --max_length of the server sets it",
    )  # fmt: skip


@pytest.mark.parametrize(
    "parameters", [{"temperature": 1.0}, {"seed": 5}, {"top_p": 1.0, "seed": 6}, {"do_sample": False, "seed": 7}]
)
def test_sequences_are_greedy_unless_a_parameter_samples(parameters: dict[str, Any], ask: Ask) -> None:
    greedy = ask(HubTask.TRANSLATION, {"max_new_tokens": 8})
    assert [ask(HubTask.TRANSLATION, {"max_new_tokens": 8, **parameters}) for _ in range(3)] == [greedy] * 3


def test_nested_parameters(ask: Ask) -> None:
    plain = ask(HubTask.TRANSLATION, {"max_new_tokens": 3})
    assert ask(HubTask.TRANSLATION, {"generate_parameters": {"max_new_tokens": 3}}) == plain
    assert ask(HubTask.TRANSLATION, {"max_new_tokens": 3, "generate_parameters": None}) == plain
    status, answer = ask(HubTask.TRANSLATION, {"max_new_tokens": 3, "generate_parameters": {"max_new_tokens": 1}})
    assert (status, answer["error"]) == (
        400,
        "max_new_tokens is in parameters and in generate_parameters; give it once",
    )
