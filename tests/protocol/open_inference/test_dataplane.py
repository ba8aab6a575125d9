"""One table for every wire: REST in JSON and binary, gRPC in typed and raw contents give the same answers."""

from __future__ import annotations

import ast
import threading
from typing import Any

import numpy as np
import pytest

from protocol.open_inference import dataplane as inference
from protocol.open_inference import inputs as inputs_module
from protocol.output_tensors import build_tensor
from protocol.tensors import Tensor
from tests.conftest import Dial, ModelFolder, Serve
from tests.wire import WIRES, Outcome, Request

TEXTS = ["Hello, my [MASK] is cute", "sad [MASK]"]


def texts(*given: str, shape: list[int] | None = None, name: str = "input-0") -> dict[str, Any]:
    return {"name": name, "shape": [len(given)] if shape is None else shape, "datatype": "BYTES", "data": list(given)}


def tokens(name: str, rows: list[list[int]], datatype: str = "INT64") -> dict[str, Any]:
    flat = [number for row in rows for number in row]
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": datatype, "data": flat}


def asking(*names: str, **parameters: Any) -> Request:
    return {"inputs": [texts(*TEXTS)], "outputs": [{"name": name, "parameters": parameters} for name in names]}


IDS = [[101, 7592, 103, 102, 0, 0], [101, 6517, 1010, 103, 2003, 102]]
MASK = [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
TYPES = [[0] * 6, [0, 0, 1, 1, 1, 1]]
ALL = ("output-0", "logits", "probabilities", "labels")


@pytest.fixture(scope="module")
def ask(model_folder: ModelFolder, serve: Serve, dial: Dial) -> Any:
    """Ask a tiny model over all wires, and check that they agree; `ask(task, request)` gives the outcome."""
    running: dict[str, Any] = {}

    def ask(task: str, request: Request, **arguments: Any) -> Outcome:
        key = f"{task} {arguments}"
        if key not in running:
            config = {"id2label": {i: f"name:{i}" for i in range(5)}, "label2id": {f"name:{i}": i for i in range(5)}}
            served = serve(model_dir=model_folder("bert", task, **config), **arguments)
            running[key] = served.client, dial(served)
        outcomes = [wire(running[key][0], running[key][1], "model", request) for wire in WIRES]
        assert outcomes == [outcomes[0]] * len(WIRES)
        return outcomes[0]

    return ask


@pytest.mark.parametrize(
    ("task", "request_", "outputs"),
    [
        ("sequence_classification", {"inputs": [texts(*TEXTS)]}, [("output-0", "INT64", [2])]),
        ("sequence_classification", {"inputs": [texts("a", "b", "c", "d", shape=[2, 2])]}, [("output-0", "INT64", [2])]),
        ("sequence_classification", {"inputs": [texts(*TEXTS)], "parameters": {"return_probabilities": True}}, [("output-0", "BYTES", [2])]),
        ("sequence_classification", asking(*ALL), [("output-0", "INT64", [2]), ("logits", "FP32", [2, 5]), ("probabilities", "FP32", [2, 5]), ("labels", "BYTES", [2])]),

        ("token_classification", {"inputs": [texts(*TEXTS)]}, [("output-0", "INT64", [2, 1, 8])]),
        ("token_classification", asking(*ALL, "offset_mapping"), [("output-0", "INT64", [2, 1, 8]), ("logits", "FP32", [2, 8, 5]), ("probabilities", "FP32", [2, 8, 5]), ("labels", "BYTES", [2, 8]), ("offset_mapping", "INT64", [2, 8, 2])]),
        ("fill_mask", {"inputs": [texts(*TEXTS)]}, [("output-0", "BYTES", [2])]),
        ("fill_mask", asking("labels", "logits"), [("labels", "BYTES", [2, 1]), ("logits", "FP32", [2, 1, 30522])]),
        ("text_embedding", {"inputs": [texts(*TEXTS)]}, [("output-0", "FP32", [2, 32])]),
        # Tokens: the columns of token tensors are the client's.
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("attention_mask", MASK)]}, [("output-0", "INT64", [2])]),
        ("token_classification", {"inputs": [tokens("input_ids", [IDS[0]]), tokens("attention_mask", [MASK[0]])]}, [("output-0", "INT64", [1, 1, 6])]),
        ("token_classification", {"inputs": [tokens("input_ids", [IDS[0]], "INT32"), tokens("attention_mask", [MASK[0]], "INT32")], "outputs": [{"name": "logits"}]}, [("logits", "FP32", [1, 6, 5])]),
        ("fill_mask", {"inputs": [tokens("input_ids", IDS), tokens("attention_mask", MASK)]}, [("output-0", "BYTES", [2])]),
        ("text_embedding", {"inputs": [tokens("input_ids", IDS), tokens("token_type_ids", TYPES)]}, [("output-0", "FP32", [2, 32])]),
        # The classification extension.
        ("sequence_classification", asking("logits", classification=2), [("logits", "BYTES", [2, 2])]),
        ("sequence_classification", asking("output-0", classification=99), [("output-0", "BYTES", [2, 5])]),
        ("token_classification", asking("probabilities", classification=1), [("probabilities", "BYTES", [2, 8, 1])]),
        ("fill_mask", asking("output-0", classification=3), [("output-0", "BYTES", [2, 1, 3])]),
    ],
)  # fmt: skip
def test_answers(task: str, request_: Request, outputs: list[Any], ask: Any) -> None:
    found = ask(task, request_).outputs
    assert [output[:3] for output in found] == outputs
    assert all(len(data) == np.prod(shape) for _, _, shape, data in found)


def test_named_outputs_agree_with_each_other(ask: Any) -> None:
    outputs = {
        name: np.array(data).reshape(shape)
        for name, _, shape, data in ask("token_classification", asking(*ALL)).outputs
    }
    exponents = np.exp(outputs["logits"] - outputs["logits"].max(-1, keepdims=True))
    # The second text has three tokens less.
    np.testing.assert_allclose(
        outputs["probabilities"][0], (exponents / exponents.sum(-1, keepdims=True))[0], atol=1e-6
    )
    assert outputs["output-0"][0, 0].tolist() == outputs["logits"][0].argmax(-1).tolist()
    assert outputs["labels"][0].tolist() == [f"name:{label}" for label in outputs["output-0"][0, 0]]
    padding = slice(len(["[CLS]", "sad", "[MASK]", "[SEP]"]), None)
    assert outputs["output-0"][1, 0, padding].tolist() == [-100] * 4
    assert outputs["labels"][1, padding].tolist() == [""] * 4
    assert not outputs["logits"][1, padding].any()


def test_tokens_are_served_like_the_text_they_come_from(ask: Any) -> None:
    """all-MiniLM-L6-v2's tokenizer is BERT's: [CLS] hello [MASK] [SEP], and a pair."""
    for inputs, given in [
        ([tokens("input_ids", [IDS[0]]), tokens("attention_mask", [MASK[0]])], texts("hello [MASK]")),
        ([tokens("input_ids", [[101, 7592, 102, 6517, 102]]), tokens("token_type_ids", [[0, 0, 0, 1, 1]])], texts("hello", "sad", shape=[1, 2])),
    ]:  # fmt: skip
        logits = {"outputs": [{"name": "logits"}]}
        assert (
            ask("sequence_classification", {"inputs": inputs, **logits}).outputs
            == ask("sequence_classification", {"inputs": [given], **logits}).outputs
        )


def test_classes_are_printed_as_triton_prints_them(ask: Any) -> None:
    """`value:index:label`, the highest score first; the label may have colons of its own."""
    [(_, _, _, logits)] = ask("sequence_classification", asking("logits")).outputs
    [(_, _, shape, printed)] = ask("sequence_classification", asking("logits", classification=2)).outputs
    for row, scores in zip(np.array(printed).reshape(shape), np.array(logits).reshape(2, 5), strict=True):
        best = np.argsort(-scores)[:2].tolist()
        assert row.tolist() == [f"{scores[index]:f}:{index}:name:{index}" for index in best]
    [(_, _, _, of_output)] = ask("sequence_classification", asking("output-0", classification=2)).outputs
    [(_, _, _, of_probabilities)] = ask("sequence_classification", asking("probabilities", classification=2)).outputs
    assert of_output == of_probabilities


def test_the_class_of_a_mask_is_a_token(ask: Any) -> None:
    [(_, _, _, words)] = ask("fill_mask", {"inputs": [texts(*TEXTS)]}).outputs
    [(_, _, _, printed)] = ask("fill_mask", asking("output-0", classification=1)).outputs
    assert [element.split(":", 2)[2] for element in printed] == words
    assert ask("fill_mask", asking("labels")).outputs[0][3] == words


def test_several_labels_at_once(model_folder: ModelFolder, serve: Serve, dial: Dial) -> None:
    folder = model_folder("bert", "sequence_classification", problem_type="multi_label_classification")
    served = serve(model_dir=folder)
    for wire in WIRES:
        by_name = {
            name: (shape, data)
            for name, _, shape, data in wire(served.client, dial(served), "model", asking("output-0", "labels")).outputs
        }
        assert by_name["labels"] == (
            [2, 5],
            [f"LABEL_{i % 5}" if on else "" for i, on in enumerate(by_name["output-0"][1])],
        )


@pytest.mark.parametrize(
    ("task", "request_", "error"),
    [
        ("sequence_classification", {"inputs": []}, "the request has 0 inputs; it takes one tensor of texts, or input_ids, "),
        ("sequence_classification", {"inputs": [texts("a"), texts("b")]}, "the request has two inputs of one name"),
        ("sequence_classification", {"inputs": [texts("a"), texts("b", name="b")]}, "the request has 2 inputs; "),
        ("sequence_classification", {"inputs": [texts(shape=[0])]}, "input 'input-0' is empty; give at least one text"),
        ("sequence_classification", {"inputs": [texts("a", shape=[2])]}, "input 'input-0' has the shape [2], which is 2 elements, but 1 are given"),
        ("sequence_classification", {"inputs": [texts("a", "b", "c", shape=[1, 3])]}, "input 'input-0' has the shape [1, 3]; this model takes [texts]"),
        ("sequence_classification", {"inputs": [tokens("x", IDS)]}, "input 'x' is 'INT64'; this model takes BYTES, or tokens as input_ids"),
        ("sequence_classification", {"inputs": [{**texts("a"), "parameters": {"shared_memory_region": "x"}}]}, "input 'input-0' is in shared memory"),
        ("fill_mask", {"inputs": [texts("no mask")]}, "text 0 cannot be served: it has no mask"),
        ("token_classification", {"inputs": [texts("a", "b", shape=[1, 2])]}, "text 0 is a pair"),
        ("sequence_classification", asking("nope"), "Unexpected inference output 'nope' for model 'model'; there are output-0, logits"),
        ("text_embedding", asking("logits"), "Unexpected inference output 'logits' for model 'model'; there are output-0"),
        ("sequence_classification", asking("logits", classification=0), "the parameter classification must be a number of classes"),
        ("sequence_classification", asking("logits", classification="1"), "the parameter classification must be a number of classes"),
        ("sequence_classification", asking("logits", binary_data="yes"), "the parameter binary_data must be true or false"),
        ("sequence_classification", asking("labels", classification=1), "output 'labels' has no scores of classes"),
        ("text_embedding", asking("output-0", classification=1), "output 'output-0' has no scores of classes"),
        ("sequence_classification", {"inputs": [texts("a")], "parameters": {"return_probabilities": 1}}, "the parameter return_probabilities must be true or false"),
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("nope", IDS)]}, "there is no input 'nope' beside input_ids"),
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("attention_mask", [MASK[0]])]}, "input 'attention_mask' has the shape [1, 6]"),
        ("sequence_classification", {"inputs": [{**tokens("input_ids", IDS), "shape": [12]}]}, "input 'input_ids' has the shape [12]; it must be [texts, tokens]"),
        ("sequence_classification", {"inputs": [tokens("input_ids", [[5, 6]], "UINT8")]}, "input 'input_ids' is 'UINT8'; it must be INT32 or INT64"),
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("attention_mask", [MASK[1], [0, 1, 1, 1, 1, 1]])]}, "attention_mask of text 1 is not ones and then zeros"),
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("attention_mask", [[0] * 6, MASK[1]])]}, "attention_mask of text 0 is not ones and then zeros"),
        ("sequence_classification", {"inputs": [{**tokens("input_ids", IDS), "shape": [0, 6], "data": []}]}, "input 'input_ids' is empty"),
        ("sequence_classification", {"inputs": [tokens("input_ids", [[5, 30522]])]}, "text 0 cannot be served: 30522 is none of the model's input_ids, which are 0 to 30521"),
        ("sequence_classification", {"inputs": [tokens("input_ids", [[5], [-1]])]}, "text 1 cannot be served: -1 is none of the model's input_ids"),
        ("sequence_classification", {"inputs": [tokens("input_ids", IDS), tokens("token_type_ids", [[2] * 6] * 2)]}, "text 0 cannot be served: 2 is none of the model's token_type_ids, which are 0 to 1"),
        ("sequence_classification", {"inputs": [tokens("input_ids", [[5] * 513])]}, "text 0 cannot be served: it has 513 tokens; the model takes 512"),
        ("fill_mask", {"inputs": [tokens("input_ids", [[5, 6]])]}, "text 0 cannot be served: it has no mask"),
        ("sequence_classification", asking("labels", "labels"), "the request names an output twice"),
        ("token_classification", {"inputs": [tokens("input_ids", IDS)], "outputs": [{"name": "offset_mapping"}]}, "offset_mapping is of texts, and the request has tokens"),
    ],
)  # fmt: skip
def test_errors(task: str, request_: Request, error: str, ask: Any) -> None:
    outcome = ask(task, request_)
    assert outcome.code == "INVALID_ARGUMENT"
    assert outcome.error.startswith(error)


def test_the_scores_of_one_request_are_bounded(ask: Any) -> None:
    """A vocabulary's scores at every mask: without a bound 33 KB of request would get 2 GB of answer."""
    many = [texts(*["[MASK] " * 300] * 4)]
    for asked in ({"outputs": [{"name": "logits"}]}, {"parameters": {"return_probabilities": True}}):
        outcome = ask("fill_mask", {"inputs": many, **asked})
        assert outcome.code == "RESOURCE_EXHAUSTED"
        assert outcome.error.endswith(" are more than the 8388608 that --max_answer_numbers allows")
    assert ask("fill_mask", {"inputs": many, "outputs": [{"name": "labels"}]}).outputs[0][2] == [4, 300]


def test_models_without_token_types_take_none(model_folder: ModelFolder, serve: Serve, dial: Dial) -> None:
    served = serve(model_dir=model_folder("distilbert", "sequence_classification"))
    request = {"inputs": [tokens("input_ids", IDS), tokens("token_type_ids", TYPES)]}
    assert WIRES[0](served.client, dial(served), "model", request).error.endswith(
        "it has token_type_ids, and the model takes none"
    )


def test_an_operators_offsets_are_left_out_where_there_is_no_text(ask: Any) -> None:
    request = {"inputs": [tokens("input_ids", IDS)]}
    found = ask("token_classification", request, return_offsets_mapping=True).outputs
    assert [name for name, _, _, _ in found] == ["output-0"]


def test_raw_logits_of_the_operator_are_what_is_classified(ask: Any) -> None:
    [(_, _, _, printed)] = ask("sequence_classification", {"inputs": [texts("a")]}, return_raw_logits=True).outputs
    scores = ast.literal_eval(printed[0])
    asked = {"inputs": [texts("a")], "outputs": [{"name": "output-0", "parameters": {"classification": 1}}]}
    [(_, _, _, [best])] = ask("sequence_classification", asked, return_raw_logits=True).outputs
    index = max(scores, key=scores.__getitem__)
    assert best == f"{scores[index]:f}:{index}:name:{index}"


@pytest.mark.parametrize(("count", "is_offloaded"), [(1, False), (100, True)])
def test_large_tensors_are_copied_beside_the_event_loop(
    model_folder: ModelFolder, serve: Serve, monkeypatch: pytest.MonkeyPatch, count: int, is_offloaded: bool
) -> None:
    threads: list[str] = []

    def build(*args: Any) -> Tensor:
        threads.append(threading.current_thread().name)
        return build_tensor(*args)

    monkeypatch.setattr(inference, "build_tensor", build)
    client = serve(model_dir=model_folder("bert", "fill_mask")).client
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}]
    answer = client.post(
        "/v2/models/model/infer", json={"inputs": [texts(*["[MASK] [MASK]"] * count)], "outputs": outputs}
    )
    assert answer.status_code == 200
    assert [name.startswith("offload") for name in threads] == [is_offloaded]


@pytest.mark.parametrize(
    ("given", "is_offloaded"),
    [
        ([tokens("input_ids", [[101, 102]])], False),
        ([tokens("input_ids", [[101, 102] * 250] * 40), tokens("attention_mask", [[1] * 500] * 40)], True),
        ([texts(*["a"] * 20_000, shape=[2, 10_000], name="words")], True),
    ],
)
def test_large_tensors_are_read_beside_the_event_loop(
    model_folder: ModelFolder,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    given: list[dict[str, Any]],
    is_offloaded: bool,
) -> None:
    threads: list[str] = []
    make_inputs = inputs_module._make_inputs

    def make(*args: Any) -> Any:
        threads.append(threading.current_thread().name)
        return make_inputs(*args)

    monkeypatch.setattr(inputs_module, "_make_inputs", make)
    client = serve(model_dir=model_folder("bert", "token_classification")).client
    answer = client.post("/v2/models/model/infer", json={"inputs": given, "parameters": {"truncation": True}})
    assert answer.status_code == 200, answer.text
    assert [name.startswith("offload") for name in threads] == [is_offloaded]


@pytest.mark.parametrize("name", ["input_ids", "attention_mask"])
def test_more_tokens_than_may_wait_are_refused(ask: Any, name: str) -> None:
    inputs = [tokens(each, [[1] * 50] * 3) for each in ("input_ids", name)][: 1 + (name != "input_ids")]
    refused = ask("sequence_classification", {"inputs": inputs}, max_queue_tokens=149)
    assert "150 tokens of all texts are more than the 149 that --max_queue_tokens allows" in str(refused)
    assert ask("sequence_classification", {"inputs": inputs}, max_queue_tokens=150).outputs
