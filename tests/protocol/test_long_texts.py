"""Texts longer than the model takes: cut, refused, counted, or read in windows, against stock models' own windows."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import AutoTokenizer

from protocol.tensors import BYTES
from tests.conftest import ModelFolder, Serve
from tests.families import AUTO_CLASSES, FAMILIES
from tests.protocol.answers import HYPOTHESIS, RANDOM_TEXT, TOLERANCE, ask
from tests.protocol.conftest import Run
from tests.served import Served
from tests.v1 import predict
from tests.wire import WIRES

LENGTH = 40
SHORT = "Sarah lives in [MASK]"
LONG = "Sarah O'Connor flew to New York, and É 😀 e\u0301 東京 " * 9
LONG_TEXT = st.lists(RANDOM_TEXT, min_size=1, max_size=30).map(" ".join)

Array = NDArray[Any]


@cache
def stock(folder: str, task: str) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AUTO_CLASSES[task].from_pretrained(folder).eval()


def read_windows(served: Served, task: str, stride: int, *texts: Any, **how: Any) -> list[tuple[Any, Array, Array]]:
    """Each window's encoding, the stock model's logits of it, and which of its tokens are its own."""
    tokenizer, model = stock(served.folder, task)
    windows = tokenizer(
        *texts, max_length=LENGTH, stride=stride, return_overflowing_tokens=True, **{"truncation": True, **how}
    )
    found = []
    for number, encoding in enumerate(windows.encodings):
        inputs = {name: torch.tensor([windows[name][number]]) for name in tokenizer.model_input_names}
        with torch.inference_mode():
            logits = model(**inputs).logits[0].numpy()
        own = np.ones(len(encoding.ids), dtype=bool)
        real = np.flatnonzero(~np.array(encoding.special_tokens_mask, dtype=bool))
        if number:
            own[: real[stride // 2]] = False
        if number < len(windows.encodings) - 1:
            own[real[len(real) - (stride - stride // 2) - 1] + 1 :] = False
        found.append((encoding, logits, own))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(text=LONG_TEXT, stride=st.integers(2, (LENGTH - 4) // 2))
def test_tokens_are_classified_to_the_end(family: str, text: str, stride: int, run: Run) -> None:
    """Each by the window that sees most around it; two windows share `stride` tokens, and each has the half of them."""
    served = run("token_classification", family, max_length=LENGTH)
    request = {
        "inputs": [{"name": "x", "shape": [1], "datatype": BYTES, "data": [text]}],
        "outputs": [{"name": name} for name in ("logits", "offset_mapping", "truncated_tokens")],
        "parameters": {"stride": stride},
    }
    logits, offsets, truncated = WIRES[0](served.client, served.channel, "model", request).outputs
    windows = read_windows(served, "token_classification", stride, text)
    expected = np.concatenate([scores[own] for _, scores, own in windows])
    np.testing.assert_allclose(np.reshape(logits[3], logits[2])[0], expected, atol=TOLERANCE)
    places = np.concatenate([np.array(encoding.offsets)[own] for encoding, _, own in windows])
    assert np.reshape(offsets[3], offsets[2])[0].tolist() == places.tolist()
    tokenizer, _ = stock(served.folder, "token_classification")
    assert offsets[3] == np.ravel(tokenizer(text, return_offsets_mapping=True)["offset_mapping"]).tolist()
    assert truncated[3] == [0]


@pytest.mark.parametrize("options", [{"labels": True}, *({"aggregation_strategy": each} for each in ("simple", "max"))])
@pytest.mark.parametrize("stride", [0, 1, 9])
def test_records_of_windows_are_parts_of_the_whole_text(options: dict[str, Any], stride: int, run: Run) -> None:
    served = run("token_classification", max_length=LENGTH)
    texts = [SHORT, LONG]
    short, found = predict(served.client, texts, stride=stride, ignore_labels=[], **options)
    assert short == predict(served.client, texts, ignore_labels=[], **options)[0]
    assert found[-1]["end"] == len(LONG.rstrip())
    assert all(record["text"] == LONG[record["start"] : record["end"]] for record in found)
    assert all(before["end"] <= after["start"] for before, after in pairwise(found))
    columns = ask(served, texts, {**options, "stride": stride, "ignore_labels": ""}).outputs
    assert [column[2] for column in columns] == [[2, len(found)]] * 5
    assert columns[2][3][len(found) :] == [record["text"] for record in found]


@pytest.mark.parametrize("family", ["bert", "roberta", "albert"])
@pytest.mark.parametrize("stride", [0, 1, 8])
def test_words_of_windows(family: str, stride: int, run: Run) -> None:
    """One record a word to the end, also of a word whose tokens two windows have."""
    served = run("token_classification", family, max_length=LENGTH)
    words = ["unbelievable", "Sarah", "O'Connor"] * 20
    [found] = predict(served.client, [{"words": words}], stride=stride)
    assert [(record["text"], record["start"]) for record in found] == [(word, at) for at, word in enumerate(words)]


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(parts=st.lists(LONG_TEXT, min_size=2, max_size=4), stride=st.integers(2, (LENGTH - 4) // 2))
def test_masks_are_filled_to_the_end(family: str, parts: list[str], stride: int, run: Run) -> None:
    served = run("fill_mask", family, max_length=LENGTH)
    tokenizer, _ = stock(served.folder, "fill_mask")
    text = f" {tokenizer.mask_token} ".join(parts)
    request = {
        "inputs": [{"name": "x", "shape": [1], "datatype": BYTES, "data": [text]}],
        "outputs": [{"name": "logits"}], "parameters": {"stride": stride},
    }  # fmt: skip
    [(_, _, shape, data)] = WIRES[1](served.client, served.channel, "model", request).outputs
    expected = [
        scores[own & (np.array(encoding.ids) == tokenizer.mask_token_id)]
        for encoding, scores, own in read_windows(served, "fill_mask", stride, text)
    ]
    np.testing.assert_allclose(np.reshape(data, shape)[0], np.concatenate(expected), atol=TOLERANCE)
    [records] = predict(served.client, [text], stride=stride, top_k=1)
    whole = tokenizer(text)["input_ids"]
    for [record], mask in zip(records, np.flatnonzero(np.array(whole) == tokenizer.mask_token_id), strict=True):
        filled = [*whole[:mask], record["token"], *whole[mask + 1 :]]
        assert record["sequence"] == tokenizer.decode(filled, skip_special_tokens=len(records) == 1)


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(
    text=LONG_TEXT, pair=RANDOM_TEXT.map(lambda text: f"He {text[:6]}"), stride=st.integers(0, 9), mean=st.booleans()
)
def test_classes_are_of_all_windows(family: str, text: str, pair: str, stride: int, mean: bool, run: Run) -> None:
    """The mean or the maximum of the windows' logits; of a pair the longer text is read in windows."""
    served = run("sequence_classification", family, max_length=LENGTH)
    tokenizer, _ = stock(served.folder, "sequence_classification")
    options = {"stride": stride, "window_aggregation": "mean" if mean else "max", "return_raw_logits": True}
    longer = len(tokenizer.tokenize(text)) >= len(tokenizer.tokenize(pair))
    if len(tokenizer(text, pair)["input_ids"]) <= LENGTH:
        longer = True
    single, both = predict(served.client, [text, [text, pair]], **options)
    for found, given_texts in ((single, [text]), (both, [text, pair])):
        how = {} if len(given_texts) == 1 else {"truncation": "only_first" if longer else "only_second"}
        windows = read_windows(served, "sequence_classification", stride, *given_texts, **how)
        logits = np.stack([scores for _, scores, _ in windows])
        expected = logits.mean(axis=0) if mean else logits.max(axis=0)
        np.testing.assert_allclose(list(found.values()), expected, atol=TOLERANCE)


@pytest.mark.parametrize("task", ["fill_mask", "sequence_classification", "text_embedding", "token_classification"])
def test_what_is_left_out_is_counted(task: str, run: Run) -> None:
    served = run(task, max_length=LENGTH)
    tokenizer: Any = AutoTokenizer.from_pretrained(served.folder)
    texts = [SHORT, f"[MASK] {LONG}", f"[MASK]{' word' * 3000}"]
    expected = [max(0, len(tokenizer(text)["input_ids"]) - LENGTH) for text in texts]
    assert expected[0] == 0 < expected[1] < expected[2]
    plain = served.client.post("/v1/models/model:predict", json={"instances": texts}).json()
    asked = {"instances": texts, "parameters": {"return_truncated_tokens": True}}
    answer = served.client.post("/v1/models/model:predict", json=asked).json()
    tensor = {"name": "truncated_tokens", "datatype": "INT64", "shape": [3], "data": expected}
    assert answer == {**plain, "outputs": [tensor]}
    found = ask(served, texts, {})
    assert found == ask(served, texts, {"truncation": True})
    output = ("truncated_tokens", "INT64", [3], expected)
    assert ask(served, texts, {"return_truncated_tokens": True}).outputs == [*found.outputs, output]
    request = {
        "inputs": [{"name": "x", "shape": [3], "datatype": BYTES, "data": texts}],
        "outputs": [{"name": "truncated_tokens"}],
    }
    for wire in WIRES:
        assert wire(served.client, served.channel, "model", request).outputs == [
            ("truncated_tokens", "INT64", [3], expected)
        ]


@pytest.mark.parametrize("task", ["fill_mask", "sequence_classification", "text_embedding", "token_classification"])
def test_a_text_that_must_not_be_cut(task: str, run: Run) -> None:
    served = run(task, max_length=LENGTH)
    tokenizer: Any = AutoTokenizer.from_pretrained(served.folder)
    assert predict(served.client, [SHORT], truncation=False) == predict(served.client, [SHORT])
    tokens = len(tokenizer(LONG)["input_ids"])
    outcome = ask(served, [SHORT, LONG], {"truncation": False})
    assert outcome.code == "INVALID_ARGUMENT"
    assert outcome.error.startswith(
        f"text 1 cannot be served: it has {tokens} tokens, the model takes {LENGTH}, and truncation is false"
    )
    # The operator's, which a request changes.
    strict = run(task, max_length=LENGTH, truncation=False)
    body = {"instances": [LONG]}
    assert strict.client.post("/v1/models/model:predict", json=body).status_code == 400
    texts = [f"[MASK] {LONG}"]
    assert predict(strict.client, texts, truncation=True) == predict(served.client, texts)


def test_texts_that_are_cut_on_the_left(model_folder: ModelFolder, serve: Serve, tmp_path: Any) -> None:
    """Windows are the same; what is left out is counted the same."""
    folder = model_folder("bert", "token_classification")
    client = serve(model_dir=folder, max_length=LENGTH).client
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, truncation_side="left")
    tokenizer.save_pretrained(tmp_path)
    left = serve(model_dir=tmp_path, max_length=LENGTH).client
    assert predict(left, [LONG]) != predict(client, [LONG])
    for options in ({"stride": 4}, {"stride": 0}):
        assert predict(left, [LONG], **options) == predict(client, [LONG], **options)
    bodies = {"instances": [LONG], "parameters": {"return_truncated_tokens": True}}
    outputs = [each.post("/v1/models/model:predict", json=bodies).json()["outputs"] for each in (left, client)]
    assert outputs[0] == outputs[1]
    # A request names a side, or the operator does.
    texts = [LONG, SHORT]
    operator = serve(model_dir=folder, max_length=LENGTH, truncation_side="left").client
    on_left, on_right = predict(left, texts), predict(client, texts)
    assert predict(client, texts, truncation_side="left") == predict(operator, texts) == on_left
    assert (
        predict(left, texts, truncation_side="right") == predict(operator, texts, truncation_side="right") == on_right
    )
    assert predict(left, texts, truncation_side=None) == on_left


@pytest.mark.parametrize(
    "task",
    ["fill_mask", "sequence_classification", "text_embedding", "token_classification", "zero_shot_classification"],
)
def test_a_side_over_every_wire(task: str, run: Run) -> None:
    """The answer is that of the text's last tokens: what is truncated on the left is not read."""
    served = run(task, max_length=LENGTH)
    # With scores, since the classes may be the same.
    more: dict[str, dict[str, Any]] = {
        "sequence_classification": {"top_k": 5},
        "zero_shot_classification": {"candidate_labels": "one,two"},
    }
    options: dict[str, Any] = {"return_truncated_tokens": True, **more.get(task, {})}
    end = "word " * (LENGTH + 5) + "[MASK] of the text"
    texts = ["The other " * 10 + end, "[MASK] " + end]
    found = ask(served, texts, {**options, "truncation_side": "left"})
    assert found.code == "OK"
    [*outputs, (name, _, _, counts)] = found.outputs
    assert name == "truncated_tokens"
    assert min(counts) > 5
    for _, _, shape, data in outputs:
        first, second = np.reshape(np.array(data, dtype=object), shape)
        assert np.array_equal(first, second)
    assert ask(served, texts, {**options, "truncation_side": "right"}).outputs != found.outputs


@pytest.mark.parametrize(
    ("task", "instance", "parameters", "error"),
    [
        ("sequence_classification", LONG, {"stride": 20}, "text 0 cannot be served: stride 20 needs windows of at least 40 tokens, but only 38 of 40 remain beside the special tokens"),
        ("sequence_classification", LONG, {"stride": -1}, "the parameter stride is wrong: Input should be greater than or equal to 0"),
        ("sequence_classification", LONG, {"stride": True}, "the parameter stride is wrong: Input should be a valid integer"),
        ("sequence_classification", [LONG, "a " * 30], {"stride": 1}, "text 0 cannot be served: stride 1 needs windows of at least 10 tokens, but only 7 of 40 remain beside the other text"),
        ("sequence_classification", LONG, {"window_aggregation": "min"}, "the parameter window_aggregation is wrong: Input should be 'mean' or 'max'"),
        ("sequence_classification", LONG, {"truncation_side": "top"}, "the parameter truncation_side is wrong: Input should be 'left' or 'right'"),
        ("text_embedding", "a" * (2**19 + 1), {"truncation_side": "left"}, "text 0 cannot be served: 524289 characters of a text that is not simply truncated are more than the 524288 that --max_whole_text_characters allows"),
        ("sequence_classification", LONG, {"truncation": "perhaps"}, "the parameter truncation is wrong: Input should be a valid boolean"),
        ("text_embedding", LONG, {"stride": 1}, "the parameter stride does not apply to text_embedding, whose options are: "),
        ("token_classification", LONG, {"window_aggregation": "max"}, "the parameter window_aggregation does not apply to token_classification, "),
        ("fill_mask", "word " * 90, {"stride": 1}, "text 0 cannot be served: it has no mask: write [MASK] where"),
        ("fill_mask", "[MASK] " * 275, {"stride": 1}, "8393550 numbers of the answer, or scores of the vocabulary that it is made of, are more than the 8388608 that --max_answer_numbers allows"),
        ("fill_mask", "[MASK] " * 2000, {"stride": 1, "top_k": 5}, "text 0 cannot be served: its 2000 masks and top_k 5 make more than the 10000 sequences of one text (fewer for one of 2002 tokens)"),
        ("fill_mask", "a" * (2**19 + 1), {"truncation": False}, "text 0 cannot be served: 524289 characters of a text that is not simply truncated are more than the 524288 that --max_whole_text_characters allows"),
    ],
)  # fmt: skip
def test_what_is_refused(task: str, instance: Any, parameters: dict[str, Any], error: str, run: Run) -> None:
    served = run(task, max_length=LENGTH)
    response = served.client.post("/v1/models/model:predict", json={"instances": [instance], "parameters": parameters})
    assert response.status_code == (413 if "are more than the" in error else 400)
    assert response.json()["error"].startswith(error)


def test_as_many_masks_as_an_answer_has_numbers(run: Run) -> None:
    """With the default of `max_answer_numbers` and a vocabulary of 30,522 tokens; one more is refused above."""
    [masks] = predict(run("fill_mask", max_length=LENGTH).client, ["[MASK] " * 274], stride=1, top_k=1)
    assert len(masks) == 274


def test_windows_of_many_texts_are_one_request(run: Run) -> None:
    """Each answer stands where its text does, whatever windows ran together."""
    served = run("sequence_classification", max_length=LENGTH, max_batch_tokens=100)
    texts = [LONG[: 40 * number] for number in range(12)] * 8
    together = predict(served.client, texts, stride=5, labels=True)
    alone = [predict(served.client, [text], stride=5, labels=True)[0] for text in texts[:12]]
    for found, expected in zip(together, alone * 8, strict=True):
        assert (found["label"], found["score"]) == (expected["label"], pytest.approx(expected["score"], abs=TOLERANCE))
