"""Text Embeddings Inference's classes, against the pipelines of `transformers`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from starlette.testclient import TestClient
from transformers import pipeline

from tests.conftest import ModelFolder, Serve
from tests.protocol.tei.conftest import CheckError, Post

PAIRS = [["A man eats.", "Somebody eats."], ["It rains."]]
FORMS = (
    "inputs must be a text, a pair [text, text], or a list of lists that have one text or two: "
    "[[text], [text, text], ...]"
)


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_predict(
    raw_scores: bool, problem_type: str | None, model_folder: ModelFolder, serve: Serve, post: Post
) -> None:
    more = {} if problem_type is None else {"problem_type": problem_type}
    folder = model_folder("bert", "sequence_classification", **more)
    function: dict[str, Any] = {"function_to_apply": "none"} if raw_scores else {}
    reference: Any = pipeline("text-classification", model=str(folder), top_k=None, **function)
    given = [{"text": text, "text_pair": pair} for text, pair in PAIRS[:1]] + [{"text": PAIRS[1][0]}]
    expected = [reference(each) for each in given]
    # What the operator asks of the other protocols leaves nothing out here.
    client = serve(model_dir=folder, top_k=1, threshold=0.9).client
    found = post(client, "/predict", inputs=PAIRS, raw_scores=raw_scores)
    for one, wanted in zip(found, expected, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in wanted]
        np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in wanted], atol=1e-5)
    for inputs, index in ((PAIRS[0], 0), (PAIRS[1], 1), (PAIRS[1][0], 1)):
        single = post(client, "/predict", inputs=inputs, raw_scores=raw_scores)
        assert [each["label"] for each in single] == [each["label"] for each in found[index]]


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("activation", ["activation.Sigmoid", "linear.Identity"])
def test_predict_of_a_model_that_ranks(
    raw_scores: bool, activation: str, model_folder: ModelFolder, serve: Serve, post: Post
) -> None:
    """Its score is a sigmoid whatever the model's files say."""
    named = {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{activation}"}}
    folder = model_folder("bert", "text_ranking", **named)
    function = torch.nn.Identity() if raw_scores else torch.nn.Sigmoid()
    [expected] = CrossEncoder(str(folder), device="cpu", activation_fn=function).predict([("hello", "world")])
    [found] = post(serve(model_dir=folder).client, "/predict", inputs=["hello", "world"], raw_scores=raw_scores)
    assert found == {"score": pytest.approx(float(expected), abs=1e-5), "label": "LABEL_0"}


@pytest.mark.parametrize("multi_label", [False, True])
def test_predict_of_a_zero_shot_model(multi_label: bool, model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    """The classes are the model's own, also where the operator has candidates for the other protocols."""
    folder = model_folder("bert", "zero_shot_classification")
    reference: Any = pipeline("text-classification", model=str(folder), top_k=None)
    expected = reference({"text": PAIRS[0][0], "text_pair": PAIRS[0][1]})
    candidates = {"candidate_labels": "sports,film", "multi_label": multi_label, "top_k": 1}
    client = serve(model_dir=folder, task="zero_shot_classification", **candidates).client
    found = post(client, "/predict", inputs=PAIRS[0])
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in expected], atol=1e-5)
    assert {*client.get("/info").json()["model_type"]["classifier"]["label2id"]} == {each["label"] for each in found}


def test_as_many_classes_as_an_answer_has(
    model_folder: ModelFolder, serve: Serve, post: Post, check_error: CheckError
) -> None:
    """An answer without some of the classes would be taken for a whole one."""
    folder = model_folder("bert", "sequence_classification", num_labels=3)
    assert len(post(serve(model_dir=folder, max_top_k=3).client, "/predict", inputs="a")) == 3
    message = "3 classes of the model are more than the 2 that --max_top_k allows"
    check_error(serve(model_dir=folder, max_top_k=2).client, "/predict", {"inputs": "a"}, 413, message)


def test_a_pair_is_one_text(model_folder: ModelFolder, serve: Serve, post: Post, check_error: CheckError) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), max_client_batch_size=1).client
    assert post(client, "/predict", inputs=PAIRS[0]) == post(client, "/predict", inputs=PAIRS[:1])[0]
    message = "2 inputs are more than the 1 that --max_client_batch_size allows"
    check_error(client, "/predict", {"inputs": PAIRS}, 413, message)


@pytest.mark.parametrize("inputs", ["", [""], ["", ""], [["a"], [""]], [["", ""]]])
def test_empty_texts(inputs: Any, classifier: TestClient, check_error: CheckError) -> None:
    message = "inputs has an empty text; give at least a character"
    check_error(classifier, "/predict", {"inputs": inputs}, 400, message, "Empty")


def test_a_pair_may_have_an_empty_text(classifier: TestClient, post: Post) -> None:
    assert post(classifier, "/predict", inputs=["", "a"]) == post(classifier, "/predict", inputs=[["", "a"]])[0]


@pytest.mark.parametrize("inputs", [[], ["a", "b", "c"], [[]], [["a", "b", "c"]], [["a"], "b"], ["a", ["b"]]])
def test_forms_of_predict(inputs: Any, classifier: TestClient, check_error: CheckError) -> None:
    check_error(classifier, "/predict", {"inputs": inputs}, 422, FORMS)
