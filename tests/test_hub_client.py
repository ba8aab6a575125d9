"""huggingface_hub's clients, unchanged, against a started server: their own types, and the numbers of the pipelines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from huggingface_hub import (
    AsyncInferenceClient,
    FillMaskOutputElement,
    InferenceClient,
    QuestionAnsweringOutputElement,
    TextClassificationOutputElement,
    TokenClassificationOutputElement,
    ZeroShotClassificationOutputElement,
    constants,
)
from huggingface_hub.errors import BadRequestError, HfHubHTTPError
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from tests.conftest import ModelFolder
from tests.families import MINILM, name_classes
from tests.protocol.spans import find_spans
from tests.servers import ServerProcess, serve, serve_models

pytestmark = pytest.mark.slow

TEXT, OTHER = "Sarah lives in Munich", "It rains in Rome"
MASKED = "The capital of [MASK] is paris."
CONTEXT = "Sarah O'Connor flew to Rome, but she lives in Munich."
QUESTION = "Where does Sarah live?"
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
CONFIGS: dict[str, dict[str, Any]] = {"token_classification": name_classes(NAMES)}
ENCODERS = (
    "sequence_classification", "token_classification", "fill_mask", "question_answering", "zero_shot_classification",
)  # fmt: skip

# Calls a client with the arguments of one of its methods, at the URL of a model.
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def folders(model_folder: ModelFolder) -> dict[str, Path]:
    encoders = {task: model_folder("bert", task, **CONFIGS.get(task, {})) for task in ENCODERS}
    return {**encoders, "text_embedding": Path(MINILM)}


@pytest.fixture(scope="module")
def server(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    models = {name: {"model_dir": folder} for name, folder in folders.items()}
    with serve_models(tmp_path_factory.mktemp("server"), models) as server:
        yield server


@pytest.fixture(scope="module")
def classifier(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of one model, which the client calls at the root."""
    home = tmp_path_factory.mktemp("classifier")
    with serve(home, f"model_dir={folders['sequence_classification']}", "api_key=secret") as server:
        yield server


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client calls nothing while the tests are offline, which they are for its downloads."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(params=["InferenceClient", "AsyncInferenceClient"])
def call(request: pytest.FixtureRequest, server: ServerProcess) -> Call:
    """`call("fill_mask", "fill_mask", text, top_k=3)`: a model, a method of the client, its arguments."""

    def call_method(model: str, method: str, *inputs: Any, **arguments: Any) -> Any:
        url = f"{server.url}/models/{model}"
        if request.param == "InferenceClient":
            return getattr(InferenceClient(url), method)(*inputs, **arguments)
        return asyncio.run(getattr(AsyncInferenceClient(base_url=url), method)(*inputs, **arguments))

    return call_method


def check_type(value: Any, expected: Any) -> None:
    """Whether a value is the client's, its fields have values of their types, and the answer had no other ones."""
    assert isinstance(value, expected)
    assert is_dataclass(expected)
    annotations = get_type_hints(type(value))
    for field in fields(expected):
        assert annotations[field.name] is Any or isinstance(getattr(value, field.name), annotations[field.name])
    assert value.keys() == {field.name for field in fields(expected)}


def check_classes(found: Any, expected: Any, kind: Any) -> None:
    for one, other in zip(found, expected, strict=True):
        check_type(one, kind)
        assert (one.label, one.score) == (other["label"], pytest.approx(other["score"], abs=1e-4))


@pytest.mark.parametrize("arguments", [{}, {"top_k": 2}, {"top_k": 3, "function_to_apply": "sigmoid"}])
def test_text_classification(arguments: dict[str, Any], call: Call, folders: dict[str, Path]) -> None:
    classify: Any = pipeline("text-classification", str(folders["sequence_classification"]))
    found = call("sequence_classification", "text_classification", TEXT, **arguments)
    check_classes(found, classify(TEXT, **{"top_k": None, **arguments}), TextClassificationOutputElement)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"aggregation_strategy": "none", "ignore_labels": ["B-LOC"]}, {"aggregation_strategy": "max", "stride": 4}],
)
def test_token_classification(arguments: dict[str, Any], call: Call, folders: dict[str, Path]) -> None:
    options = {"aggregation_strategy": "simple", **arguments}
    expected: Any = pipeline("token-classification", str(folders["token_classification"]), **options)(TEXT)
    found = call("token_classification", "token_classification", TEXT, **arguments)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        check_type(one, TokenClassificationOutputElement)
        assert one.score == pytest.approx(other["score"], abs=1e-4)
        assert (one.entity, one.entity_group) == (other.get("entity"), other.get("entity_group"))
        assert (one.start, one.end, one.word) == (other["start"], other["end"], TEXT[other["start"] : other["end"]])


@pytest.mark.parametrize("arguments", [{}, {"top_k": 2}, {"targets": ["france", "italy"]}])
def test_fill_mask(arguments: dict[str, Any], call: Call, folders: dict[str, Path]) -> None:
    expected = pipeline("fill-mask", str(folders["fill_mask"]))(MASKED, **arguments)
    found = call("fill_mask", "fill_mask", MASKED, **arguments)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, FillMaskOutputElement)
        assert (one.token, one.token_str, one.sequence) == (other["token"], other["token_str"], other["sequence"])
        assert one.score == pytest.approx(other["score"], abs=1e-4)


@pytest.mark.parametrize("arguments", [{}, {"multi_label": True}, {"hypothesis_template": "It is {}."}])
def test_zero_shot_classification(arguments: dict[str, Any], call: Call, folders: dict[str, Path]) -> None:
    labels = ["sports", "weather", "the film"]
    classify: Any = pipeline("zero-shot-classification", str(folders["zero_shot_classification"]))
    answer = classify(TEXT, labels, **arguments)
    expected = [
        {"label": label, "score": score} for label, score in zip(answer["labels"], answer["scores"], strict=True)
    ]
    found = call("zero_shot_classification", "zero_shot_classification", TEXT, labels, **arguments)
    check_classes(found, expected, ZeroShotClassificationOutputElement)


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_question_answering(top_k: int | None, call: Call, folders: dict[str, Path]) -> None:
    arguments = {"align_to_words": True, "doc_stride": 64, "handle_impossible_answer": False, "max_answer_len": 5}
    found = call(
        "question_answering", "question_answering", QUESTION, CONTEXT, top_k=top_k, max_seq_len=384, **arguments
    )
    answers = found if top_k == 2 else [found]
    spans = find_spans(str(folders["question_answering"]), QUESTION, CONTEXT, most=5, impossible=False, stride=64)
    for answer, score in zip(answers, sorted(spans.values(), reverse=True), strict=False):
        check_type(answer, QuestionAnsweringOutputElement)
        assert answer.answer == CONTEXT[answer.start : answer.end]
        assert answer.score == pytest.approx(score, abs=1e-4)


def test_feature_extraction(call: Call) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    options = {"normalize": True, "truncate": True, "truncation_direction": "right", "encoding_format": "float"}
    for arguments in ({}, options, {"normalize": False}):
        found = call("text_embedding", "feature_extraction", TEXT, **arguments)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, model.encode([TEXT]), atol=1e-5)
    found = call("text_embedding", "feature_extraction", [TEXT, OTHER], dimensions=16)
    np.testing.assert_allclose(
        found, model.encode([TEXT, OTHER], truncate_dim=16, normalize_embeddings=True), atol=1e-5
    )


def test_sentence_similarity(call: Call) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    vectors = model.encode([QUESTION, TEXT, OTHER])
    found = call("text_embedding", "sentence_similarity", QUESTION, other_sentences=[TEXT, OTHER])
    assert found == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)


def test_the_root_of_a_server_with_one_model(classifier: ServerProcess, folders: dict[str, Path]) -> None:
    expected: Any = pipeline("text-classification", str(folders["sequence_classification"]))(TEXT, top_k=None)
    for client in (
        InferenceClient(classifier.url, token="secret"),
        InferenceClient(base_url=classifier.url, api_key="secret"),
    ):
        check_classes(client.text_classification(TEXT), expected, TextClassificationOutputElement)
    assert InferenceClient(classifier.url, provider="hf-inference").health_check()
    with pytest.raises(HfHubHTTPError, match="401"):
        InferenceClient(classifier.url, token="wrong").text_classification(TEXT)


def test_what_is_not_done_is_said(call: Call) -> None:
    with pytest.raises(BadRequestError, match="there is no prompt 'query'"):
        call("text_embedding", "feature_extraction", TEXT, prompt_name="query")
    with pytest.raises(BadRequestError, match="align_to_words in parameters is not supported here"):
        call("question_answering", "question_answering", QUESTION, CONTEXT, align_to_words=False)
    with pytest.raises(
        BadRequestError, match="parameters has candidate_labels, which text-classification does not have"
    ):
        call("sequence_classification", "zero_shot_classification", TEXT, ["a", "b"])
