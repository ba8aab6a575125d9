"""The answers of each task against the pipelines of `transformers`, and what batches are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import cos_sim
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve
from tests.families import MINILM
from tests.protocol.conftest import Run
from tests.protocol.huggingface.pipelines import check_records, reference
from tests.protocol.spans import find_spans

TEXTS = ["Sarah lives in Munich", "My unbelievable film is good. It rains.", "word " * 600]
LABELS = ["sports", "the film"]
CONTEXT = {"question": "Where does Sarah live?", "context": "Sarah O'Connor flew to Rome, but she lives in Munich."}


def post(client: TestClient, inputs: Any, path: str = "/", **parameters: Any) -> Any:
    response = client.post(path, json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("kind", ["sequence_classification", "multi_label"])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"top_k": 1}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}]
)
def test_text_classification(kind: str, options: dict[str, Any], run: Run) -> None:
    served = run(kind)
    classify = reference("text-classification", served.folder)
    expected = classify(TEXTS, **{"top_k": None, **options}, truncation=True)
    check_records(post(served.client, TEXTS, **options), expected)
    check_records(post(served.client, TEXTS[0], **options), expected[:1])
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    check_records(post(served.client, pair, **options), [classify(pair, **{"top_k": None, **options})])
    check_records(post(served.client, [list(pair.values())], **options), [classify(pair, **{"top_k": None, **options})])


def test_the_operator_s_options_are_the_defaults(run: Run) -> None:
    for inputs in (TEXTS, TEXTS[0]):
        found = post(run("sequence_classification", top_k=2).client, inputs)
        assert {len(classes) for classes in found} == {2}
        assert {len(classes) for classes in post(run("sequence_classification", top_k=2).client, inputs, top_k=5)} == {
            5
        }
    [entity, *_] = post(run("token_classification", aggregation_strategy="none").client, TEXTS[0])
    assert "entity" in entity
    zero_shot = run("zero_shot_classification", candidate_labels="a,b").client
    assert {each["label"] for each in post(zero_shot, TEXTS[0])} == {"a", "b"}
    assert {each["label"] for each in post(zero_shot, TEXTS[0], candidate_labels=["c"])} == {"c"}


@pytest.mark.parametrize(
    "options", [{}, {"aggregation_strategy": "none"}, {"aggregation_strategy": "first", "ignore_labels": []}]
)
def test_token_classification(options: dict[str, Any], run: Run) -> None:
    """A word is the text's own, while the pipeline decodes tokens, in lower case here."""
    served, texts = run("token_classification"), TEXTS[:2]
    find = reference("token-classification", served.folder)
    expected = [
        [
            {name: value for name, value in entity.items() if name != "index"}
            | {"word": text[entity["start"] : entity["end"]], "score": float(entity["score"])}
            for entity in find(text, **{"aggregation_strategy": "simple", **options})
        ]
        for text in texts
    ]
    check_records(post(served.client, texts, **options), expected)
    check_records(post(served.client, texts[0], **options), expected[0])


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"targets": ["paris", "rome"]}])
def test_fill_mask(options: dict[str, Any], run: Run) -> None:
    served = run("fill_mask")
    texts = ["The capital of France is [MASK].", "[MASK] is the capital of [MASK]."]
    expected = [reference("fill-mask", served.folder)(text, **options) for text in texts]
    check_records(post(served.client, texts, **options), expected)
    for text, each in zip(texts, expected, strict=True):
        check_records(post(served.client, text, **options), each)


@pytest.mark.parametrize("options", [{}, {"multi_label": True}, {"hypothesis_template": "It is about {}."}])
def test_zero_shot_classification(options: dict[str, Any], run: Run) -> None:
    served = run("zero_shot_classification")
    answers = reference("zero-shot-classification", served.folder)(TEXTS, LABELS, **options)
    expected = [
        [{"label": label, "score": score} for label, score in zip(each["labels"], each["scores"], strict=True)]
        for each in answers
    ]
    check_records(post(served.client, TEXTS, candidate_labels=LABELS, **options), expected)
    check_records(post(served.client, TEXTS[0], candidate_labels=", ".join(LABELS), **options), expected[0])


def test_a_zero_shot_model_without_labels_has_classes_of_its_own(run: Run) -> None:
    served = run("zero_shot_classification")
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    expected = reference("text-classification", served.folder)(pair, top_k=None)
    check_records(post(served.client, pair), [expected])
    response = served.client.post("/pipeline/zero-shot-classification", json={"inputs": TEXTS[0]})
    assert response.status_code == 400
    assert "candidate_labels" in response.json()["error"]


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_question_answering(top_k: int | None, run: Run) -> None:
    served = run("question_answering")
    found = post(served.client, CONTEXT, top_k=top_k)
    answers = [found] if top_k != 3 else found
    assert len(answers) == (top_k or 1)
    spans = find_spans(served.folder, CONTEXT["question"], CONTEXT["context"], 15, False, 128)
    best = sorted(spans.values(), reverse=True)
    for answer, score in zip(answers, best, strict=False):
        assert answer["score"] == pytest.approx(score, abs=1e-4)
        assert answer["answer"] == CONTEXT["context"][answer["start"] : answer["end"]]
    assert post(served.client, [CONTEXT, CONTEXT], top_k=top_k) == [found, found]


def test_parameters_of_question_answering(run: Run) -> None:
    served = run("question_answering")
    long = {**CONTEXT, "context": f"{'It rains. ' * 150}{CONTEXT['context']}"}
    for stride, most in ((20, 2), (64, 5)):
        found = post(served.client, long, doc_stride=stride, max_answer_len=most, handle_impossible_answer=True)
        spans = find_spans(served.folder, long["question"], long["context"], most, True, stride)
        assert found["score"] == pytest.approx(max(spans.values()), abs=1e-4)


@pytest.mark.parametrize("place", ["parameters", "body"])
def test_feature_extraction(place: str, plain: Path, serve: Serve) -> None:
    client, model = serve(model_dir=plain).client, SentenceTransformer(str(plain), device="cpu")
    options: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {"normalize_embeddings": True}),
        ({"normalize": False}, {}),
        ({"normalize": False, "prompt_name": "query"}, {"prompt_name": "query"}),
        ({"dimensions": 8, "truncate": True}, {"normalize_embeddings": True, "truncate_dim": 8}),
        ({"truncation_direction": "right"}, {"normalize_embeddings": True}),
    ]
    for sent, meant in options:
        fields = {"parameters": sent} if place == "parameters" else sent
        expected = model.encode(TEXTS, **meant)
        response = client.post("/", json={"inputs": TEXTS, **fields})
        np.testing.assert_allclose(response.json(), expected, atol=1e-5)
        single = client.post("/pipeline/feature-extraction", json={"inputs": TEXTS[0], **fields})
        np.testing.assert_allclose(single.json(), expected[:1], atol=1e-5)


def test_texts_are_truncated_on_the_left(plain: Path, serve: Serve) -> None:
    client, model = serve(model_dir=plain).client, SentenceTransformer(str(plain), device="cpu")
    model.tokenizer.truncation_side = "left"
    text = "a " * 600 + "long text"
    for side in ("left", "Left"):
        response = client.post("/", json={"inputs": text, "truncation_direction": side})
        np.testing.assert_allclose(response.json(), model.encode([text], normalize_embeddings=True), atol=1e-5)


def test_sentence_similarity(serve: Serve) -> None:
    client, model = serve(model_dir=MINILM).client, SentenceTransformer(str(MINILM), device="cpu")
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    expected = cos_sim(model.encode(TEXTS[:1]), model.encode(TEXTS[1:]))[0].tolist()
    for path in ("/", "/pipeline/sentence-similarity"):
        assert post(client, inputs, path) == pytest.approx(expected, abs=1e-5)


def test_text_ranking(model_folder: ModelFolder, serve: Serve) -> None:
    """A pair of a query and a text has one class, as in the pipeline of text classification."""
    folder = model_folder("bert", "text_ranking")
    pairs = [{"text": "hello", "text_pair": text} for text in TEXTS[:2]]
    expected = reference("text-classification", str(folder))(pairs, top_k=None)
    check_records(post(serve(model_dir=folder).client, pairs), expected)
