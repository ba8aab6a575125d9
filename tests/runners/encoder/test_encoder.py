"""Every family and task against `transformers` on the same texts, through the whole application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.texts import docstrings
from tests.conftest import ModelFolder, Serve
from tests.families import AUTO_CLASSES, FAMILIES
from tests.v1 import predict

TOLERANCE = 2e-5
TEXTS = ["Hello, my dog is cute", "Paris is the capital of France.", "É", *docstrings()[:40:4]]


def reference_logits(folder: Path, task: str, texts: list[Any], **tokenize: Any) -> list[np.ndarray[Any, Any]]:
    """One text at a time, as `transformers` does without padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AUTO_CLASSES[task].from_pretrained(folder).eval()
    results = []
    for text in texts:
        pair = text if isinstance(text, tuple) else (text,)
        inputs = tokenizer(*pair, truncation=True, max_length=512, return_tensors="pt", **tokenize)
        with torch.no_grad():
            results.append(model(**inputs).logits[0].numpy())
    return results


def scores(prediction: Any) -> Any:
    """KServe's maps of class scores as an array."""
    if isinstance(prediction, list):
        return np.array([scores(row) for row in prediction])
    assert list(prediction) == [str(index) for index in range(len(prediction))]
    return list(prediction.values())


def softmax(logits: Any) -> Any:
    return torch.softmax(torch.from_numpy(np.asarray(logits)), -1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_sequence_classification(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "sequence_classification")
    client = serve(model_dir=folder).client
    expected = reference_logits(folder, "sequence_classification", TEXTS)
    assert len({int(row.argmax()) for row in expected}) > 1, "the model says the same of all texts: a poor test"
    assert predict(client, TEXTS) == [int(row.argmax()) for row in expected]
    for text_logits, row in zip(predict(client, TEXTS, return_raw_logits=True), expected, strict=True):
        np.testing.assert_allclose(scores(text_logits), row, atol=TOLERANCE)
    for text_scores, row in zip(predict(client, TEXTS, return_probabilities=True), expected, strict=True):
        np.testing.assert_allclose(scores(text_scores), softmax(row), atol=0.5e-4 + TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_pairs(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "sequence_classification")
    pairs = [("A man eats.", "Somebody eats food."), ("It rains.", TEXTS[-1]), ("word " * 600, "and " * 600)]
    expected = reference_logits(folder, "sequence_classification", pairs)
    client = serve(model_dir=folder).client
    for given in ([list(pair) for pair in pairs], [{"text": text, "text_pair": pair} for text, pair in pairs]):
        for text_logits, row in zip(predict(client, given, return_raw_logits=True), expected, strict=True):
            np.testing.assert_allclose(scores(text_logits), row, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classification(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "token_classification")
    client = serve(model_dir=folder).client
    expected = reference_logits(folder, "token_classification", TEXTS)
    assert predict(client, TEXTS) == [[row.argmax(-1).tolist()] for row in expected]
    for text_logits, row in zip(predict(client, TEXTS, return_raw_logits=True), expected, strict=True):
        np.testing.assert_allclose(scores(text_logits), row, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "token_classification")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [tokenizer(text, return_offsets_mapping=True)["offset_mapping"] for text in TEXTS]
    response = serve(model_dir=folder, return_offsets_mapping=True).client.post(
        "/v1/models/model:predict", json={"instances": TEXTS}
    )
    [tensor] = response.json()["outputs"]
    longest = max(map(len, expected))
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == (
        "offset_mapping",
        "INT64",
        [len(TEXTS), longest, 2],
    )
    for row, spans in zip(np.array(tensor["data"]).reshape(tensor["shape"]), expected, strict=True):
        assert row[: len(spans)].tolist() == [list(span) for span in spans]
        assert (row[len(spans) :] == -100).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_fill_mask(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "fill_mask")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    mask = tokenizer.mask_token
    texts = [
        f"The capital of France is {mask}.",
        f"{mask} and {mask} are {mask}.",
        mask,
        f"{mask}{mask} " + "word " * 700,
    ]
    expected = []
    for text, logits in zip(texts, reference_logits(folder, "fill_mask", texts), strict=True):
        ids = tokenizer(text, truncation=True, max_length=512)["input_ids"]
        expected.append(logits[np.array(ids) == tokenizer.mask_token_id])
    assert [len(rows) for rows in expected] == [1, 3, 1, 2]
    client = serve(model_dir=folder).client
    assert predict(client, texts) == [tokenizer.decode(rows.argmax(-1)) for rows in expected]
    for text_logits, rows in zip(predict(client, texts, return_raw_logits=True), expected, strict=True):
        entries = np.array([[entry[str(index)] for index, entry in enumerate(row)] for row in text_logits])
        np.testing.assert_allclose(entries, rows, atol=TOLERANCE)
    for text_scores, rows in zip(predict(client, texts, return_probabilities=True), expected, strict=True):
        printed = [[entry[str(index)] for index, entry in enumerate(row)] for row in text_scores]
        assert {len(number) for row in printed for number in row} == {6}, "four decimals as a string, like '0.0268'"
        np.testing.assert_allclose(np.array(printed, dtype=float), softmax(rows), atol=0.5e-4 + TOLERANCE)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "one_class"])
def test_other_kinds_of_sequence_classification(problem: str, model_folder: ModelFolder, serve: Serve) -> None:
    config = {"num_labels": 1} if problem == "one_class" else {"problem_type": problem}
    folder = model_folder("bert", "sequence_classification", **config)
    logits = reference_logits(folder, "sequence_classification", TEXTS)
    client = serve(model_dir=folder).client
    labels, probabilities = predict(client, TEXTS), predict(client, TEXTS, return_probabilities=True)
    sigmoid = [1 / (1 + np.exp(-row)) for row in logits]
    match problem:
        case "multi_label_classification":
            assert labels == [(row > 0).astype(int).tolist() for row in logits]
            expected = sigmoid
        case "regression":
            np.testing.assert_allclose(labels, logits, atol=TOLERANCE)
            expected = logits
        case _:
            np.testing.assert_allclose(labels, [row[0] for row in logits], atol=TOLERANCE)
            expected = sigmoid
    for found, row in zip(probabilities, expected, strict=True):
        np.testing.assert_allclose(scores(found), row, atol=0.5e-4 + TOLERANCE)


@pytest.mark.parametrize(
    ("arguments", "tokenize"),
    [
        ({"disable_special_tokens": True}, {"add_special_tokens": False}),
        ({"return_token_type_ids": True}, {"return_token_type_ids": True}),
        ({"max_length": 8}, {"max_length": 8}),
    ],
)
def test_tokenizer_arguments(
    arguments: dict[str, Any], tokenize: dict[str, Any], model_folder: ModelFolder, serve: Serve
) -> None:
    folder = model_folder("albert", "sequence_classification")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AUTO_CLASSES["sequence_classification"].from_pretrained(folder).eval()
    client = serve(model_dir=folder, **arguments).client
    for text, found in zip(TEXTS[3:], predict(client, TEXTS[3:], return_raw_logits=True), strict=True):
        inputs = tokenizer(text, truncation=True, return_tensors="pt", **tokenize)
        with torch.no_grad():
            np.testing.assert_allclose(scores(found), model(**inputs).logits[0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("disable_lower_case", "same_as"), [(None, "hello world"), (True, "HELLO World"), (False, "hello world")]
)
def test_lower_case(disable_lower_case: bool | None, same_as: str, model_folder: ModelFolder, serve: Serve) -> None:
    """The uncased tokenizer's own casing holds; KServe's flag turns it off."""
    folder = model_folder("bert", "sequence_classification")
    tokenizer = AutoTokenizer.from_pretrained(folder, do_lower_case=not disable_lower_case)
    model = AUTO_CLASSES["sequence_classification"].from_pretrained(folder).eval()
    client = serve(model_dir=folder, disable_lower_case=disable_lower_case).client
    [found] = predict(client, ["HELLO World"], return_raw_logits=True)
    with torch.no_grad():
        expected = model(**tokenizer(same_as, return_tensors="pt")).logits[0].numpy()
    np.testing.assert_allclose(scores(found), expected, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", "sequence_classification", initializer_range=0.02)
    expected = reference_logits(folder, "sequence_classification", TEXTS)
    found = predict(serve(model_dir=folder, dtype=dtype).client, TEXTS, return_raw_logits=True)
    for text_logits, row in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores(text_logits), row, atol=0.02)
