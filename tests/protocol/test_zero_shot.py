"""Zero-shot classification: numbers against `transformers`' pipeline, one answer over all wires, what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ZeroShotClassificationPipeline

from protocol.tensors import BYTES
from tests.conftest import ModelFolder, Serve
from tests.families import FAMILIES
from tests.protocol.answers import HYPOTHESIS, RANDOM_TEXT, TOLERANCE, ask
from tests.protocol.conftest import Run
from tests.served import Served
from tests.v1 import predict
from tests.wire import WIRES

LABELS = ["sports", "the film", "É 😀"]
TEXTS = ["I like the cup final", "x", "word " * 700]


@cache
def pipeline_of(folder: str) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    return ZeroShotClassificationPipeline(model=model, tokenizer=tokenizer)  # type: ignore[no-untyped-call]


def check(served: Served, texts: list[str], labels: list[str], **options: Any) -> None:
    found = predict(served.client, texts, candidate_labels=labels, **options)
    for text, records in zip(texts, found, strict=True):
        expected = pipeline_of(served.folder)(text, labels, **options)
        scores = [record["score"] for record in records]
        assert scores == sorted(scores, reverse=True)
        assert scores == pytest.approx(expected["scores"], abs=TOLERANCE)
        # By name, since those of about one score may come in any order.
        by_name = dict(zip(expected["labels"], expected["scores"], strict=True))
        assert {record["label"]: record["score"] for record in records} == pytest.approx(by_name, abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(
    texts=st.lists(RANDOM_TEXT.filter(bool), min_size=1, max_size=3),
    labels=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9), min_size=1, max_size=5, unique=True),
    template=st.sampled_from(["This example is {}.", "{}", "It is about {}, É"]),
    multi_label=st.booleans(),
)  # fmt: skip
def test_scores_equal_the_pipelines(
    family: str, texts: list[str], labels: list[str], template: str, multi_label: bool, run: Run
) -> None:  # fmt: skip
    served = run("zero_shot_classification", family)
    check(served, texts, labels, hypothesis_template=template, multi_label=multi_label)


def test_long_texts_are_truncated_as_the_pipeline_does(run: Run) -> None:
    check(run("zero_shot_classification"), TEXTS, LABELS)


@pytest.mark.parametrize("names", [("ENTAILMENT", "other"), ("not", "entails"), ("a", "Entailment", "b")])
def test_where_the_entailment_is(names: tuple[str, ...], model_folder: ModelFolder, serve: Serve) -> None:
    """Two classes, another order, other words: the pipeline's rule."""
    config = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    folder = model_folder("bert", "zero_shot_classification", **config, num_labels=len(names))
    for multi_label in (False, True):
        check(serve(model_dir=folder), TEXTS[:2], LABELS, multi_label=multi_label)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"candidate_labels": ",".join(LABELS)}, 3),
        ({"candidate_labels": ",".join(LABELS), "top_k": 2}, 2),
        ({"candidate_labels": ",".join(LABELS), "multi_label": True, "threshold": 0.0}, 3),
        ({"candidate_labels": "one"}, 1),
    ],
)
def test_records_are_typed_tensors(options: dict[str, Any], count: int, run: Run) -> None:
    served = run("zero_shot_classification")
    records = predict(served.client, TEXTS, **options)
    label, score = ask(served, TEXTS, options).outputs
    assert label[:3] == ("label", BYTES, [3, count])
    assert score[:3] == ("score", "FP32", [3, count])
    assert label[3] == [record["label"] for each in records for record in each]
    assert score[3] == pytest.approx([record["score"] for each in records for record in each])


def test_an_operators_labels(run: Run) -> None:
    """They are every request's, unless it has its own or none."""
    plain = run("zero_shot_classification")
    served = run("zero_shot_classification", candidate_labels=tuple(LABELS), hypothesis_template="{}!")
    assert predict(served.client, TEXTS) == predict(
        plain.client, TEXTS, candidate_labels=LABELS, hypothesis_template="{}!"
    )
    own = {"candidate_labels": ["a", "b"]}
    assert predict(served.client, TEXTS, **own) == predict(plain.client, TEXTS, **own, hypothesis_template="{}!")
    assert predict(served.client, TEXTS, candidate_labels=[]) == predict(plain.client, TEXTS)


def test_without_labels_it_is_sequence_classification(run: Run) -> None:
    served = run("zero_shot_classification")
    plain = run("zero_shot_classification", task="sequence_classification")
    assert served.client.get("/v2/models/model").json()["properties"]["task"] == "zero_shot_classification"
    assert plain.client.get("/v2/models/model").json()["properties"]["task"] == "sequence_classification"
    instances = [*TEXTS, ["A man eats.", "He eats."]]
    for options in ({}, {"return_probabilities": True}, {"top_k": 2}, {"stride": 9}):
        assert predict(served.client, instances, **options) == predict(plain.client, instances, **options)
    assert ask(served, TEXTS, {}) == ask(plain, TEXTS, {})


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"candidate_labels": 1}, "the parameter candidate_labels is wrong: Input should be a list, or a string with commas"),
        ({"candidate_labels": ["a", ""]}, "the parameter candidate_labels is wrong: a name must not be empty"),
        ({"candidate_labels": "a", "hypothesis_template": "no place"}, "the parameter hypothesis_template is wrong: it must have {} where the label goes"),
        ({"candidate_labels": "a", "multi_label": "often"}, "the parameter multi_label is wrong: Input should be a valid boolean"),
        ({"candidate_labels": "a", "function_to_apply": "none"}, "the parameters candidate_labels and function_to_apply exclude each other"),
        ({"candidate_labels": "a", "stride": 1}, "the parameters candidate_labels and stride exclude each other"),
        ({"candidate_labels": "a", "return_probabilities": True}, "the parameters candidate_labels and return_probabilities exclude each other"),
        ({"candidate_labels": "a,b", "truncation": False}, "text 1 cannot be served: it has 708 tokens, the model takes 512, and truncation is false"),
    ],
)  # fmt: skip
def test_what_is_refused(parameters: dict[str, Any], error: str, run: Run) -> None:
    served = run("zero_shot_classification")
    response = served.client.post("/v1/models/model:predict", json={"instances": TEXTS[1:], "parameters": parameters})
    assert response.status_code == 400
    assert response.json()["error"].startswith(error)


def test_what_a_long_text_leaves_out_is_counted(run: Run) -> None:
    """With the longest label; a text of which the tokenizer reads only the beginning is read to its end for that."""
    served = run("zero_shot_classification")
    tokenizer: Any = AutoTokenizer.from_pretrained(served.folder)
    texts = [*TEXTS, "word " * 9000]
    lengths = [max(len(tokenizer(text, f"This example is {each}.")["input_ids"]) for each in LABELS) for text in texts]
    outputs = ask(served, texts, {"candidate_labels": ",".join(LABELS), "return_truncated_tokens": True}).outputs
    assert outputs[-1] == ("truncated_tokens", "INT64", [4], [max(0, length - 512) for length in lengths])
    check(served, texts, LABELS)


def test_a_label_is_never_cut(run: Run) -> None:
    served = run("zero_shot_classification")
    body = {"instances": ["hi"], "parameters": {"candidate_labels": ["a " * 600, "b"]}}
    response = served.client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(
        "'This example is a a a a a a a a a a a a '... has 604 tokens, more than"
    )


def test_so_many_pairs_are_too_many(run: Run) -> None:
    served = run("zero_shot_classification")
    body = {"instances": ["x"] * 33, "parameters": {"candidate_labels": list(map(str, range(1000)))}}
    response = served.client.post("/v1/models/model:predict", json=body)
    assert response.json() == {
        "error": "33000 pairs of a text and a label are more than the 32768 that --max_request_sequences allows"
    }


@pytest.mark.parametrize("arguments", [{}, {"candidate_labels": ("a", "b")}])
def test_labels_are_of_texts(arguments: dict[str, Any], run: Run) -> None:
    served = run("zero_shot_classification", **arguments)
    request = {
        "inputs": [{"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [101, 7592, 102]}],
        "parameters": {} if arguments else {"candidate_labels": "a,b"},
    }
    for wire in WIRES:
        outcome = wire(served.client, served.channel, "model", request)
        assert outcome.error == "text 0 cannot be served: candidate_labels need a text, but the request has token ids"


def test_an_operators_stride_is_of_the_models_classes(run: Run) -> None:
    plain = run("zero_shot_classification")
    served = run("zero_shot_classification", stride=5, function_to_apply="none")
    assert predict(served.client, TEXTS, candidate_labels=LABELS) == predict(
        plain.client, TEXTS, candidate_labels=LABELS
    )
    assert predict(served.client, TEXTS) == predict(plain.client, TEXTS, stride=5, function_to_apply="none")


def test_labels_are_of_single_texts_and_have_no_logits(run: Run) -> None:
    served = run("zero_shot_classification")
    body = {"instances": ["a", ["a", "b"]], "parameters": {"candidate_labels": "a"}}
    response = served.client.post("/v1/models/model:predict", json=body)
    assert response.json() == {"error": "text 1 is a pair, but candidate_labels take single texts only"}
    tensor = {"name": "x", "shape": [1], "datatype": BYTES, "data": ["a"]}
    asked = {"inputs": [tensor], "outputs": [{"name": "logits"}], "parameters": {"candidate_labels": "a,b"}}
    response = served.client.post("/v2/models/model/infer", json=asked)
    assert response.json()["error"].startswith(
        "the outputs labels, logits, probabilities cannot be combined with candidate_labels"
    )


def test_a_model_without_entailment(run: Run) -> None:
    served = run("sequence_classification")
    body = {"instances": ["a"], "parameters": {"candidate_labels": ["a"]}}
    response = served.client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(
        "the parameter candidate_labels does not apply to sequence_classification, "
    )


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"candidate_labels": ["a"] * 1001}, "1001 names in candidate_labels are more than the 1000 that --max_labels allows"),
        ({"candidate_labels": "," * 1000}, "1001 names in candidate_labels are more than the 1000 that --max_labels allows"),
        ({"candidate_labels": ["a" * 4097]}, "4097 characters of a name in candidate_labels are more than the 4096 that --max_label_characters"),
        ({"candidate_labels": "a", "hypothesis_template": "{}" * 2**20 + "b"}, "1048577 characters of a text are more than the 1048576 that --max_text_characters"),
        ({"candidate_labels": ["a" * 4096] * 1000, "hypothesis_template": "{}" * 9}, "36865000 characters of all texts, each as often as it is paired, are more than the 33554432"),
    ],
)  # fmt: skip
def test_what_is_too_much(parameters: dict[str, Any], error: str, run: Run) -> None:
    served = run("zero_shot_classification")
    response = served.client.post("/v1/models/model:predict", json={"instances": ["a"], "parameters": parameters})
    assert response.status_code == 413
    assert response.json()["error"].startswith(error)
