"""The options of answers: numbers against `transformers`' pipelines, one answer over all wires, and what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    FillMaskPipeline,
    TextClassificationPipeline,
)

from protocol.tensors import BYTES
from tests.conftest import ModelFolder, Serve
from tests.families import FAMILIES
from tests.predictors import RestPredictor
from tests.protocol.answers import HYPOTHESIS, RANDOM_TEXT, TOLERANCE, ask
from tests.protocol.conftest import NAMES, TASKS, Run
from tests.served import Served
from tests.v1 import predict
from tests.wire import WIRES


@cache
def classifier(folder: str) -> Any:
    return TextClassificationPipeline(  # type: ignore[no-untyped-call]
        model=AutoModelForSequenceClassification.from_pretrained(folder).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
    )


@cache
def filler(folder: str) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return FillMaskPipeline(model=AutoModelForMaskedLM.from_pretrained(folder).eval(), tokenizer=tokenizer)


def check_classes(served: Served, texts: list[Any], top_k: int, function: str | None, threshold: float) -> None:
    pipeline = classifier(served.folder)
    given = {} if function is None else {"function_to_apply": function}
    found = predict(served.client, texts, top_k=top_k, **given)
    above = predict(served.client, texts, threshold=threshold, **given)
    for text, best, those in zip(texts, found, above, strict=True):
        expected = pipeline(text, top_k=None, **given)
        scores = {each["label"]: each["score"] for each in expected}
        assert len(best) == min(top_k, len(expected))
        # By name, since those of about one score may come in any order.
        for record in (*best, *those):
            assert record["score"] == pytest.approx(scores[record["label"]], abs=TOLERANCE)
        descending = [each["score"] for each in expected]
        np.testing.assert_allclose([each["score"] for each in best], descending[:top_k], atol=TOLERANCE)
        assert sorted(those, key=lambda each: -each["score"]) == those
        sure = {label for label, score in scores.items() if score > threshold + TOLERANCE}
        assert sure <= {each["label"] for each in those}
        assert all(each["score"] >= threshold for each in those)


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(
    texts=st.lists(RANDOM_TEXT, min_size=1, max_size=3),
    top_k=st.integers(1, 7),
    function=st.sampled_from([None, "softmax", "sigmoid", "none"]),
    threshold=st.floats(0, 1),
)
def test_classes_equal_the_pipelines(
    family: str, texts: list[str], top_k: int, function: str | None, threshold: float, run: Run
) -> None:
    served = run("sequence_classification", family)
    check_classes(served, texts, top_k, function, threshold)
    for text, record in zip(texts, predict(served.client, texts, labels=True), strict=True):
        [best] = classifier(served.folder)(text, top_k=1)
        assert (record["label"], record["score"]) == (best["label"], pytest.approx(best["score"], abs=TOLERANCE))


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression", "one_class"])
@HYPOTHESIS
@given(
    texts=st.lists(RANDOM_TEXT, min_size=1, max_size=3),
    function=st.sampled_from([None, "softmax", "sigmoid", "none"]),
    threshold=st.floats(0, 1),
)
def test_other_problems_equal_the_pipelines(
    problem: str, texts: list[str], function: str | None, threshold: float, model_folder: ModelFolder, serve: Serve,
    made: dict[str, Served],
) -> None:  # fmt: skip
    if problem not in made:
        config = {"num_labels": 1} if problem == "one_class" else {"problem_type": problem}
        made[problem] = serve(model_dir=model_folder("bert", "sequence_classification", **config))
    check_classes(made[problem], texts, 3, function, threshold)


@pytest.fixture(scope="module")
def made() -> dict[str, Served]:
    return {}


def test_pairs_equal_the_pipelines(run: Run) -> None:
    served = run("sequence_classification")
    check_classes(served, [{"text": "A man eats.", "text_pair": "He is glad."}, "É"], 5, None, 0.1)


def test_several_labels_at_once_are_those_above_a_half(run: Run) -> None:
    served = run("multi_label")
    texts = ["Hello, my dog is cute", "É", ""]
    found, numbers = predict(served.client, texts, labels=True), predict(served.client, texts)
    names = list(TASKS["multi_label"]["id2label"].values())
    for records, row in zip(found, numbers, strict=True):
        assert {each["label"] for each in records} == {name for name, on in zip(names, row, strict=True) if on}
    assert found == predict(served.client, texts, threshold=0.5)


def check_masks(served: Served, texts: list[str], **options: Any) -> None:
    pipeline = filler(served.folder)
    for text, masks in zip(texts, predict(served.client, texts, **options), strict=True):
        expected = pipeline(text, **options)
        expected = [expected] if isinstance(expected[0], dict) else expected
        assert [[each | {"score": 0} for each in records] for records in masks] == [
            [each | {"score": 0} for each in records] for records in expected
        ]
        for records, wanted in zip(masks, expected, strict=True):
            np.testing.assert_allclose(
                [each["score"] for each in records], [each["score"] for each in wanted], atol=TOLERANCE
            )


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(parts=st.lists(RANDOM_TEXT, min_size=2, max_size=4), top_k=st.integers(1, 9), data=st.data())
def test_masks_equal_the_pipelines(family: str, parts: list[str], top_k: int, data: st.DataObject, run: Run) -> None:
    served = run("fill_mask", family)
    tokenizer = filler(served.folder).tokenizer
    vocabulary = [word for word in sorted(tokenizer.get_vocab()) if word not in tokenizer.all_special_tokens]
    targets = data.draw(st.lists(st.sampled_from(vocabulary), min_size=1, max_size=5))
    texts = [f" {tokenizer.mask_token} ".join(parts), f"a {tokenizer.mask_token}"]
    check_masks(served, texts, top_k=top_k)
    check_masks(served, texts, targets=targets)
    check_masks(served, texts, targets=targets, top_k=top_k)


TEXTS = ["Sarah [MASK] lives in New York", "É [MASK] 😀 [MASK]"]


@pytest.mark.parametrize(
    ("task", "options", "columns", "rank"),
    [
        ("sequence_classification", {"labels": True}, {"label": BYTES, "score": "FP32"}, 1),
        ("sequence_classification", {"top_k": 2, "function_to_apply": "none"}, {"label": BYTES, "score": "FP32"}, 2),
        ("sequence_classification", {"threshold": 0.2}, {"label": BYTES, "score": "FP32"}, 2),
        ("multi_label", {"labels": True}, {"label": BYTES, "score": "FP32"}, 2),
        ("multi_label", {"threshold": 1.0}, {"label": BYTES, "score": "FP32"}, 2),
        ("fill_mask", {"top_k": 2}, {"score": "FP32", "token": "INT64", "token_str": BYTES, "sequence": BYTES}, 3),
        ("fill_mask", {"targets": "paris, rome"}, {"score": "FP32", "token": "INT64", "token_str": BYTES, "sequence": BYTES}, 3),
        *(
            ("token_classification", options, {"label": BYTES, "score": "FP32", "text": BYTES, "start": "INT64", "end": "INT64"}, 2)
            for options in (
                {"labels": True}, {"aggregation_strategy": "none", "ignore_labels": ""}, {"aggregation_strategy": "simple"},
                {"aggregation_strategy": "max", "ignore_labels": "O,PER"}, {"ignore_labels": ",".join(NAMES)},
            )
        ),
    ],
)  # fmt: skip
def test_records_are_typed_tensors(
    task: str, options: dict[str, Any], columns: dict[str, str], rank: int, run: Run
) -> None:
    """A tensor a column, of what V1 says, filled up where a text has fewer records; the same over every wire."""
    served = run(task)
    records = predict(served.client, TEXTS, **options)
    outcomes = ask(served, TEXTS, options)
    names = [(name, datatype) for name, datatype, _, _ in outcomes.outputs]
    assert names == list(columns.items())
    for name, datatype, shape, data in outcomes.outputs:
        assert (shape[0], len(shape)) == (len(TEXTS), rank)
        values = np.array(data, dtype=object).reshape(shape)
        padding = {BYTES: "", "FP32": 0.0, "INT64": -100}[datatype]
        expected = np.full(shape, padding, dtype=object)
        for row, record in enumerate(records):
            place(expected, (row,), record, name, datatype)
        assert values.tolist() == expected.tolist()


def place(target: Any, index: tuple[int, ...], record: Any, name: str, datatype: str) -> None:
    """Write a column of records, nested in lists, to where they stand."""
    if isinstance(record, list):
        for position, each in enumerate(record):
            place(target, (*index, position), each, name, datatype)
    else:
        target[index] = float(np.float32(record[name])) if datatype == "FP32" else record[name]


def test_words_over_every_wire(run: Run) -> None:
    """A tensor named `words` has a row a text, filled up with empty words; the answer is V1's."""
    served = run("token_classification")
    rows = [["Sarah", "lives", "in", "New", "York"], ["É", "", "😀"], ["one"]]
    data = [word for row in rows for word in row + [""] * (5 - len(row))]
    tensor = {"name": "words", "shape": [3, 5], "datatype": BYTES, "data": data}
    for options in ({}, {"truncation": True}, {"labels": True}, {"aggregation_strategy": "first", "ignore_labels": ""}):
        records = predict(served.client, [{"words": row} for row in rows], **options)
        for wire in WIRES:
            outputs = wire(served.client, served.channel, "model", {"inputs": [tensor], "parameters": options}).outputs
            columns = {name: np.reshape(np.array(data, dtype=object), shape) for name, _, shape, data in outputs}
            for row, expected in enumerate(records):
                for name in ("label", "text", "start", "end"):
                    assert columns[name][row, : len(expected)].tolist() == [record[name] for record in expected]


def test_an_unknown_target_leaves_the_tokenizer_as_it_is(run: Run) -> None:
    served = run("fill_mask")
    long = [f"[MASK]{' word' * 700}"]
    expected = predict(served.client, long)
    body = {"instances": ["[MASK]"], "parameters": {"targets": ["xyzzyfoo"]}}
    assert served.client.post("/v1/models/model:predict", json=body).status_code == 400
    assert predict(served.client, long) == expected


def test_columns_stand_beside_named_outputs(run: Run) -> None:
    served = run("token_classification")
    names = ["label", "logits", "offset_mapping", "end"]
    request = {
        "inputs": [{"name": "x", "shape": [2], "datatype": BYTES, "data": TEXTS}],
        "outputs": [{"name": name} for name in names], "parameters": {"aggregation_strategy": "first"},
    }  # fmt: skip
    for wire in WIRES:
        outputs = wire(served.client, served.channel, "model", request).outputs
        assert [name for name, _, _, _ in outputs] == names
        assert outputs[0][2] == outputs[3][2]


def test_an_operators_columns_are_in_the_metadata(run: Run) -> None:
    served = run("token_classification", aggregation_strategy="simple")
    described = served.client.get("/v2/models/model").json()["outputs"]
    found = ask(served, TEXTS, {}).outputs
    assert [(each["name"], each["datatype"]) for each in described][: len(found)] == [each[:2] for each in found]
    assert [each["shape"] for each in described][: len(found)] == [[-1, -1]] * len(found)


LABELS = "the parameter aggregation_strategy is wrong: Input should be 'none', 'simple', 'first', 'average' or 'max'"
OF_CLASSES = (
    "sequence_classification, whose options are: function_to_apply, labels, return_truncated_tokens, stride, threshold, "
    "top_k, truncation, truncation_side, window_aggregation"
)


@pytest.mark.parametrize(
    ("task", "parameters", "error"),
    [
        ("token_classification", {"aggregation_strategy": "median"}, LABELS),
        ("token_classification", {"aggregation_strategy": ""}, LABELS),
        ("token_classification", {"aggregation_strategy": 1}, LABELS),
        ("token_classification", {"ignore_labels": 1}, "the parameter ignore_labels is wrong: Input should be a list, or a string with commas"),
        ("token_classification", {"labels": "perhaps"}, "the parameter labels is wrong: Input should be a valid boolean"),
        ("token_classification", {"top_k": 1}, "the parameter top_k does not apply to token_classification, whose options are: aggregation_strategy, ignore_labels, labels, return_truncated_tokens, stride, truncation"),
        ("token_classification", {"aggregation_strategy": "max", "return_probabilities": True}, "the parameters aggregation_strategy and return_probabilities exclude each other"),
        ("sequence_classification", {"aggregation_strategy": "max"}, f"the parameter aggregation_strategy does not apply to {OF_CLASSES}"),
        ("sequence_classification", {"targets": "a"}, f"the parameter targets does not apply to {OF_CLASSES}"),
        ("sequence_classification", {"top_k": 0}, "the parameter top_k is wrong: Input should be greater than or equal to 1"),
        ("sequence_classification", {"top_k": 1001}, "1001 answers (top_k) are more than the 1000 that --max_top_k allows"),
        ("sequence_classification", {"top_k": True}, "the parameter top_k is wrong: Input should be a valid integer"),
        ("sequence_classification", {"top_k": "few"}, "the parameter top_k is wrong: Input should be a valid integer"),
        ("sequence_classification", {"top_k": 1.5}, "the parameter top_k is wrong: Input should be a valid integer"),
        ("sequence_classification", {"threshold": 1.5}, "the parameter threshold is wrong: Input should be less than or equal to 1"),
        ("sequence_classification", {"threshold": -0.5}, "the parameter threshold is wrong: Input should be greater than or equal to 0"),
        ("sequence_classification", {"threshold": True}, "the parameter threshold is wrong: Input should be a valid number"),
        ("sequence_classification", {"function_to_apply": "relu"}, "the parameter function_to_apply is wrong: Input should be 'softmax', 'sigmoid' or 'none'"),
        ("sequence_classification", {"labels": True, "return_raw_logits": True}, "the parameters labels and return_raw_logits exclude each other"),
        ("fill_mask", {"targets": "zzzyx"}, "targets has 'zzzyx', which is no token of the vocabulary (as the tokenizer splits it: "),
        ("fill_mask", {"labels": True}, "the parameter labels does not apply to fill_mask, whose options are: return_truncated_tokens, stride, targets, top_k, truncation"),
        ("text_embedding", {"top_k": 1}, "the parameter top_k does not apply to text_embedding, whose options are: "),
    ],
)  # fmt: skip
def test_wrong_options(task: str, parameters: dict[str, Any], error: str, run: Run) -> None:
    """A 400 that names the option and what is allowed, in the same words by V1 and over every wire."""
    served = run(task)
    response = served.client.post("/v1/models/model:predict", json={"instances": TEXTS, "parameters": parameters})
    status, code = (413, "RESOURCE_EXHAUSTED") if "are more than the" in error else (400, "INVALID_ARGUMENT")
    assert (response.status_code, list(response.json())) == (status, ["error"])
    assert response.json()["error"].startswith(error)
    outcome = ask(served, TEXTS, parameters)
    assert (outcome.code, outcome.error) == (code, response.json()["error"])


@pytest.mark.parametrize(
    ("task", "body", "error"),
    [
        ("token_classification", {"instances": ["a"], "parameters": {"ignore_labels": ["O", 1]}}, "the parameter ignore_labels is wrong: Input should be a valid string"),
        ("fill_mask", {"instances": ["[MASK]"], "parameters": {"targets": {"a": 1}}}, "the parameter targets is wrong: Input should be a list, or a string with commas"),
        ("fill_mask", {"instances": ["[MASK] " * 20], "parameters": {"top_k": 1000}}, "text 0 cannot be served: its 20 masks and top_k 1000 make more than the 10000 sequences of one text"),
        ("sequence_classification", {"instances": ["a", {"words": ["a"]}]}, "text 1 is split into words, and sequence_classification takes whole texts"),
        ("token_classification", {"instances": [{}]}, "instances[0] must have either text, which text_pair may follow, or words, or question and context"),
        ("token_classification", {"instances": ["a", {"text": "a", "words": ["a"]}]}, "instances[1] must have either text, "),
        ("token_classification", {"inputs": [{"words": ["a"], "text_pair": "b"}]}, "inputs[0] must have either text, "),
        ("token_classification", {"inputs": ["a"], "instances": [{}]}, "instances[0] must have either text, "),
        ("token_classification", {"instances": [{"words": "a b"}]}, "the body is not as expected: Expected `array`, got `str` - at `$.instances[0].words`"),
    ],
)  # fmt: skip
def test_wrong_bodies(task: str, body: dict[str, Any], error: str, run: Run) -> None:
    response = run(task).client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 400
    assert response.json()["error"].startswith(error)


@pytest.mark.parametrize("arguments", [{}, {"aggregation_strategy": "max"}])
def test_entities_are_of_texts(arguments: dict[str, Any], run: Run) -> None:
    """Tokens have no text that an entity could be a part of, also where it is the operator who wants entities."""
    served = run("token_classification", **arguments)
    request = {
        "inputs": [{"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [101, 7592, 102]}],
        "parameters": {} if arguments else {"aggregation_strategy": "simple"},
    }
    for wire in WIRES:
        outcome = wire(served.client, served.channel, "model", request)
        assert outcome.code == "INVALID_ARGUMENT"
        assert outcome.error == (
            "text 0 cannot be served: labels, aggregation_strategy and ignore_labels need a text, but the request has "
            "token ids"
        )


def test_records_of_a_predictors_scores(run: Run, serve: Serve) -> None:
    """The model is elsewhere; text, offsets and words are here."""
    served = run("token_classification")
    predictor = RestPredictor(served.client.app)
    try:
        remote = serve(model_dir=served.folder, predictor_host=predictor.host, predictor_protocol="v2").client
        for options in ({"labels": True}, {"aggregation_strategy": "average"}):
            instances = [*TEXTS, {"words": ["Sarah", "O'Connor"]}]
            found, expected = (predict(each, instances, **options) for each in (remote, served.client))
            for records, wanted in zip(found, expected, strict=True):
                assert [each | {"score": 0} for each in records] == [each | {"score": 0} for each in wanted]
                assert [each["score"] for each in records] == pytest.approx(
                    [each["score"] for each in wanted], abs=1e-5
                )
    finally:
        predictor.close()
