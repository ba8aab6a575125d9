"""The answers of BentoML's methods against `transformers` and sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from starlette.testclient import TestClient
from transformers import pipeline

from protocol.bentoml_api.methods import METHODS
from tests.conftest import ModelFolder, ServeSeveral
from tests.generators import generate_greedily
from tests.protocol.bentoml_api.conftest import ServeMethod
from tests.protocol.spans import find_spans

TEXTS = ["Hello, my dog is cute", "Maria flew to Munich", "good " * 300]
PAIRS = ["Somebody has a meal.", "It rains.", "It is dry."]
MASKED = ["The capital of [MASK] is [MASK].", "I am [MASK]"]
LABELS = ["sports", "technology", "cooking"]
# What an operator may have set, which changes no answer of a method that has its own options.
FORMS = [{}, {"return_probabilities": True}, {"return_raw_logits": True}]


def call(client: TestClient, method: str, **arguments: Any) -> Any:
    response = client.post(METHODS[method].path, json=arguments)
    assert response.status_code == 200, response.text
    return response.json()


def check_records(found: Any, expected: Any) -> None:
    """Compare records, in lists of any depth, with those of a pipeline, which may have more columns."""
    if isinstance(found, dict):
        for name, value in found.items():
            assert value == (pytest.approx(expected[name], abs=1e-4) if name == "score" else expected[name])
    else:
        for one, wanted in zip(found, expected, strict=True):
            check_records(one, wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("options", "asked"),
    [({}, {"top_k": 1}), ({"top_k": 2}, {"top_k": 2}), ({"top_k": 3, "function_to_apply": "sigmoid"},) * 2],
)
def test_classify(
    options: dict[str, Any], asked: dict[str, Any], form: dict[str, Any], serve_method: ServeMethod
) -> None:
    served = serve_method("classify", **form)
    reference: Any = pipeline("text-classification", model=served.folder, truncation=True, **asked)
    check_records(call(served.client, "classify", texts=TEXTS, **options), reference(TEXTS))
    pairs = [{"text": text, "text_pair": pair} for text, pair in zip(TEXTS[:2], PAIRS[:2], strict=True)]
    found = call(served.client, "classify", texts=TEXTS[:2], text_pairs=PAIRS[:2], **options)
    check_records(found, [reference(pair) for pair in pairs])


def test_the_operators_options_are_defaults(serve_method: ServeMethod) -> None:
    client = serve_method("classify", top_k=2).client
    assert [len(each) for each in call(client, "classify", texts=TEXTS)] == [2] * 3
    assert [len(each) for each in call(client, "classify", texts=TEXTS, top_k=1)] == [1] * 3


@pytest.mark.parametrize("strategy", [None, "simple", "max"])
def test_classify_tokens(strategy: str | None, serve_method: ServeMethod) -> None:
    served = serve_method("classify_tokens")
    reference: Any = pipeline("token-classification", model=served.folder, aggregation_strategy=strategy or "none")
    names = {"label": "entity" if strategy is None else "entity_group", "text": "word"}
    expected = [
        [{name: one.get(names.get(name, name)) for name in ("label", "score", "start", "end")} for one in each]
        for each in reference(TEXTS[:2])
    ]
    found = call(served.client, "classify_tokens", texts=TEXTS[:2], aggregation_strategy=strategy)
    assert any(found)
    for text, entities in zip(TEXTS, found, strict=False):
        assert [entity.pop("text") for entity in entities] == [text[each["start"] : each["end"]] for each in entities]
    check_records(found, expected)


@pytest.mark.parametrize("multi_label", [False, True])
def test_classify_zero_shot(multi_label: bool, serve_method: ServeMethod) -> None:
    served = serve_method("classify_zero_shot")
    reference: Any = pipeline("zero-shot-classification", model=served.folder)
    template = "It is about {}."
    expected = [
        [{"label": label, "score": score} for label, score in zip(each["labels"], each["scores"], strict=True)]
        for each in reference(TEXTS[:2], LABELS, hypothesis_template=template, multi_label=multi_label)
    ]
    found = call(
        served.client, "classify_zero_shot", texts=TEXTS[:2], candidate_labels=LABELS, hypothesis_template=template,
        multi_label=multi_label,
    )  # fmt: skip
    check_records(found, expected)


@pytest.mark.parametrize("options", [{}, {"top_k": 2}])
def test_fill_mask(options: dict[str, Any], serve_method: ServeMethod) -> None:
    served = serve_method("fill_mask", return_probabilities=True)
    reference: Any = pipeline("fill-mask", model=served.folder, **options)
    expected = [reference(MASKED[0]), [reference(MASKED[1])]]
    check_records(call(served.client, "fill_mask", texts=MASKED, **options), expected)


@pytest.mark.parametrize("top_k", [None, 3])
def test_answer(top_k: int | None, serve_method: ServeMethod) -> None:
    served = serve_method("answer")
    questions, contexts = ["Who lives in Munich?", "What rains?"], [TEXTS[1], PAIRS[1]]
    found = call(served.client, "answer", questions=questions, contexts=contexts, top_k=top_k)
    for question, context, answers in zip(questions, contexts, found, strict=True):
        spans = find_spans(served.folder, question, context, 15, impossible=False, stride=128)
        best = sorted(spans.values(), reverse=True)[: top_k or 1]
        assert [each["score"] for each in answers] == pytest.approx(best, abs=1e-4)
        for each in answers:
            span = each["start"], each["end"]
            assert spans[span] == pytest.approx(each["score"], abs=1e-4)
            assert each["answer"] == context[slice(*span)]


def test_embed(serve_method: ServeMethod) -> None:
    served = serve_method("embed")
    reference = SentenceTransformer(served.folder, device="cpu")
    np.testing.assert_allclose(call(served.client, "embed", texts=TEXTS), reference.encode(TEXTS), atol=1e-5)
    expected = reference.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(call(served.client, "embed", texts=TEXTS, dimensions=16), expected, atol=1e-5)


def test_embed_sparse(serve_method: ServeMethod) -> None:
    served = serve_method("embed_sparse")
    modules = [Transformer(served.folder, transformer_task="fill-mask"), SpladePooling("max")]
    reference = SparseEncoder(modules=modules, device="cpu", max_active_dims=9)
    found = call(served.client, "embed_sparse", texts=TEXTS, max_active_dims=9)
    for values, expected in zip(found, reference.encode(TEXTS, convert_to_sparse_tensor=False), strict=True):
        assert [each["index"] for each in values] == np.flatnonzero(expected).tolist()
        np.testing.assert_allclose([each["value"] for each in values], expected[expected != 0], atol=1e-4)


@pytest.mark.parametrize("operators", [{}, {"top_k": 1, "threshold": 0.99}, {"return_raw_logits": True}])
@pytest.mark.parametrize("activation", ["activation.Sigmoid", "linear.Identity"])
def test_rank(activation: str, operators: dict[str, Any], model_folder: ModelFolder, serve_method: ServeMethod) -> None:
    served = serve_method("rank", **operators)
    reference = CrossEncoder(served.folder, device="cpu", activation_fn=torch.nn.Identity())
    logits = reference.predict([(PAIRS[0], text) for text in TEXTS])
    order = np.argsort(-logits)
    options = {"function_to_apply": "none"} if activation == "linear.Identity" else {}
    scores = logits if options else 1 / (1 + np.exp(-logits))
    found = call(served.client, "rank", query=PAIRS[0], texts=TEXTS, **options)
    assert [each["index"] for each in found] == order.tolist()
    np.testing.assert_allclose([each["score"] for each in found], scores[order], atol=1e-4)


MESSAGES = [{"role": "user", "content": "Hello dog"}]


@pytest.mark.parametrize(
    ("method", "arguments", "tokens"),
    [
        ("generate", {"prompt": "Hello my dog", "max_tokens": 6}, 6),
        # The default of the other protocols for texts, and as much as the context has room for.
        ("generate", {"prompt": "Hello my dog"}, 20),
        ("chat", {"messages": MESSAGES, "max_tokens": 6}, 6),
        ("chat", {"messages": MESSAGES}, None),
    ],
)
def test_generate(method: str, arguments: dict[str, Any], tokens: int | None, serve_method: ServeMethod) -> None:
    served = serve_method(method)
    response = served.client.post(METHODS[method].path, json={**arguments, "temperature": 0})
    assert (response.status_code, response.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    prompt = arguments.get("prompt") or arguments["messages"]
    if tokens is None:
        expected = generate_greedily(served.folder, prompt, 64)
        assert len(response.text) > 20
        assert expected.startswith(response.text)
    else:
        assert response.text == generate_greedily(served.folder, prompt, tokens)
    assert response.text


def test_a_call_names_one_of_several_models(model_folder: ModelFolder, serve_several: ServeSeveral) -> None:
    folders = {name: model_folder("bert", "text_embedding", hidden_size=size) for name, size in (("a", 32), ("b", 64))}
    client = serve_several(*({"model_dir": folder, "model_name": name} for name, folder in folders.items())).client
    assert len(call(client, "embed", texts=["x"], model="b")[0]) == 64
    refused = client.post("/bentoml/embed", json={"texts": ["x"]})
    assert (refused.status_code, refused.json()) == (
        400, {"error": "several models serve /bentoml/embed; name one with model: a, b"}
    )  # fmt: skip
    unknown = client.post("/bentoml/embed", json={"texts": ["x"], "model": "c"})
    assert unknown.status_code == 404
    other = client.post("/bentoml/classify", json={"texts": ["x"], "model": "a"})
    assert other.status_code == 400
    assert other.json()["error"].startswith("a does not serve /bentoml/classify: it serves text_embedding at ")
