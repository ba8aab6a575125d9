from __future__ import annotations

import ast
import json
import struct
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from runners.core.version import VERSION
from tests.conftest import ModelFolder, Serve

INFER = "/v2/models/model/infer"
TEXTS = ["Hello, my dog is cute", "sad"]
EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "model_repository_extension"]


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


def tensor(data: Any = None, shape: list[int] | None = None, **fields: Any) -> dict[str, Any]:
    data = TEXTS if data is None else data
    return {
        "name": "input-0",
        "shape": [len(data)] if shape is None else shape,
        "datatype": "BYTES",
        "data": data,
    } | fields


def infer(client: TestClient, *inputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    response = client.post(INFER, json={"inputs": list(inputs)} | fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def output(client: TestClient, texts: list[str], **parameters: Any) -> dict[str, Any]:
    [found] = infer(client, tensor(texts), parameters=parameters)["outputs"]
    assert np.prod(found["shape"]) == len(found["data"])
    result: dict[str, Any] = found
    return result


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2", {"name": "bentoml-huggingface-runtime", "version": VERSION, "extensions": EXTENSIONS}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models", {"models": ["model"]}),
        ("/v2/models/model/ready", {"name": "model", "ready": True}),
        ("/v2/models/model/versions/1/ready", {"name": "model", "ready": True}),
    ],
)
def test_get(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, body)
    assert client.head(path).status_code == 200


def scores(*shape: int) -> list[Any]:
    return [("logits", "FP32", list(shape)), ("probabilities", "FP32", list(shape))]


def tokens(*shape: int) -> list[Any]:
    return [*scores(*shape), ("labels", "BYTES", list(shape[:-1]))]


OFFSETS = ("offset_mapping", "INT64", [-1, -1, 2])


@pytest.mark.parametrize(
    ("task", "arguments", "outputs", "named"),
    [
        ("sequence_classification", {}, [("output-0", "INT64", [-1])], tokens(-1, 5)),
        ("sequence_classification", {"return_probabilities": True}, [("output-0", "BYTES", [-1])], tokens(-1, 5)),
        ("token_classification", {}, [("output-0", "INT64", [-1, 1, -1])], [*tokens(-1, -1, 5), OFFSETS]),
        ("token_classification", {"return_raw_logits": True, "return_offsets_mapping": True},
         [("output-0", "BYTES", [-1, -1]), OFFSETS], tokens(-1, -1, 5)),
        ("fill_mask", {}, [("output-0", "BYTES", [-1])], tokens(-1, -1, 30522)),
        ("fill_mask", {"return_probabilities": True}, [("output-0", "BYTES", [-1, -1, 30522])], tokens(-1, -1, 30522)),
        ("text_embedding", {}, [("output-0", "FP32", [-1, 32])], [("token_embeddings", "FP32", [-1, -1, 32])]),
        ("sparse_embedding", {"task": "sparse_embedding"},
         [("index", "INT64", [-1, -1]), ("value", "FP32", [-1, -1])], []),
        ("text_ranking", {}, [("output-0", "FP32", [-1])], [*scores(-1, 1), ("relevance", "FP32", [-1])]),
    ],
)  # fmt: skip
def test_metadata_describes_what_infer_returns(
    task: str, arguments: dict[str, Any], outputs: list[Any], named: list[Any], model_folder: ModelFolder, serve: Serve
) -> None:
    """First what an answer has by default, then what it has only where a request names it."""
    named = [*named, ("truncated_tokens", "INT64", [-1])]
    client = serve(model_dir=model_folder("bert", task), **arguments).client
    metadata = client.get("/v2/models/model").json()
    assert metadata == {
        "name": "model",
        "versions": ["1"],
        "platform": "pytorch_transformers",
        "inputs": [{"name": "input-0", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": name, "datatype": type_, "shape": shape} for name, type_, shape in [*outputs, *named]],
        "properties": {
            "task": task,
            "max_length": "512",
            **({"mask_token": "[MASK]"} if task == "fill_mask" else {}),
            **({"dimensions": "32", "normalized": "true", "pooling": "mean"} if task == "text_embedding" else {}),
            **({"dimensions": "30522", "pooling": "splade"} if task == "sparse_embedding" else {}),
            "token_inputs": "input_ids,attention_mask,token_type_ids",
        },
    }
    assert client.get("/v2/models/model/versions/1").json() == metadata
    given = tensor(["[MASK] a", "[MASK] is [MASK]"])
    by_default = infer(client, given)["outputs"]
    by_name = infer(client, given, outputs=[{"name": name} for name, _, _ in [*outputs, *named]])["outputs"]
    for found, (name, datatype, shape) in zip([*by_default, *by_name], [*outputs, *outputs, *named], strict=True):
        assert (found["name"], found["datatype"], len(found["shape"])) == (name, datatype, len(shape))
        assert all(size in (-1, real) for size, real in zip(shape, found["shape"], strict=True))
        assert np.prod(found["shape"]) == len(found["data"])


def test_labels(client: TestClient) -> None:
    answer = infer(client, tensor(), id="my id")
    assert list(answer) == ["model_name", "model_version", "id", "outputs"]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("model", "1", "my id")
    predictions = client.post("/v1/models/model:predict", json={"instances": TEXTS}).json()["predictions"]
    assert answer["outputs"] == [{"name": "output-0", "shape": [2], "datatype": "INT64", "data": predictions}]


def test_an_id_is_made_where_none_is_given(client: TestClient) -> None:
    ids = {infer(client, tensor())["id"], infer(client, tensor(), id="")["id"], infer(client, tensor(), id=None)["id"]}
    assert len(ids) == 3
    assert all(len(made) == 36 for made in ids)


def test_the_clients_request_id_is_the_id_where_the_body_has_none(client: TestClient) -> None:
    for body, expected in (({}, "my id"), ({"id": "7"}, "7")):
        response = client.post(INFER, json={"inputs": [tensor()], **body}, headers={"x-request-id": "my id"})
        assert (response.json()["id"], response.headers["x-request-id"]) == (expected, "my id")


@pytest.mark.parametrize(
    "given",
    [
        tensor([["Hello, my dog is cute"], ["sad"]], shape=[2, 1]),
        tensor(shape=[2, 1]),
        tensor(datatype="bytes"),
        tensor(name="anything", parameters={"content_type": "str"}),
    ],
)
def test_forms_of_a_tensor(client: TestClient, given: dict[str, Any]) -> None:
    assert infer(client, given)["outputs"] == infer(client, tensor())["outputs"]


@pytest.mark.parametrize(
    "given", [tensor(["sad"], shape=[]), tensor(["sad"], shape=[1]), tensor([["sad"]], shape=[1, 1])]
)
def test_forms_of_one_text(client: TestClient, given: dict[str, Any]) -> None:
    assert infer(client, given)["outputs"][0]["shape"] == [1]


def test_pairs(client: TestClient) -> None:
    expected = client.post("/v1/models/model:predict", json={"instances": [["a", "b"], ["c", "d"]]}).json()
    for data in (["a", "b", "c", "d"], [["a", "b"], ["c", "d"]]):
        assert infer(client, tensor(data, shape=[2, 2]))["outputs"][0]["data"] == expected["predictions"]


def test_class_scores_are_printed_as_kserve_prints_them(client: TestClient) -> None:
    """KServe's own tests read them with `ast.literal_eval` and look classes up by number."""
    texts = ["Hello, my dog is cute", "sad"]
    probabilities = output(client, texts, return_probabilities=True)
    assert (probabilities["datatype"], probabilities["shape"]) == ("BYTES", [2])
    for printed in probabilities["data"]:
        row = ast.literal_eval(printed)
        assert list(row) == [0, 1, 2, 3, 4]
        assert all(round(value, 4) == value for value in row.values())
        assert abs(sum(row.values()) - 1) < 0.001
    logits = output(client, texts, return_raw_logits=True)["data"]
    [expected, _] = client.post(
        "/v1/models/model:predict", json={"instances": texts, "parameters": {"return_raw_logits": True}}
    ).json()["predictions"]
    assert ast.literal_eval(logits[0]) == {int(key): value for key, value in expected.items()}


def test_token_tensors_are_padded(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "token_classification")).client
    labels = client.post("/v1/models/model:predict", json={"instances": TEXTS}).json()["predictions"]
    assert [len(row[0]) for row in labels] == [8, 3]
    found = output(client, TEXTS)
    assert (found["datatype"], found["shape"]) == ("INT64", [2, 1, 8])
    assert found["data"] == labels[0][0] + labels[1][0] + [-100] * 5
    found = output(client, TEXTS, return_probabilities=True)
    assert (found["datatype"], found["shape"]) == ("BYTES", [2, 8])
    assert found["data"][11:] == ["{}"] * 5
    assert all(list(ast.literal_eval(row)) == [0, 1, 2, 3, 4] for row in found["data"][:11])


def test_fill_mask_tensors(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("roberta", "fill_mask")).client
    texts = ["<mask> is", "<mask> or <mask>"]
    words = client.post("/v1/models/model:predict", json={"instances": texts}).json()["predictions"]
    assert output(client, texts) == {"name": "output-0", "shape": [2], "datatype": "BYTES", "data": words}
    for asked, value_type in (({"return_probabilities": True}, str), ({"return_raw_logits": True}, float)):
        found = output(client, texts, **asked)
        [two, masks, classes] = found["shape"]
        assert (two, masks, classes) == (2, 2, 3000)
        rows = [ast.literal_eval(entry) for entry in found["data"][:classes]]
        assert [list(row) for row in rows] == [[index] for index in range(classes)]
        assert {type(value) for row in rows for value in row.values()} == {value_type}
        assert set(found["data"][classes : 2 * classes]) == {"{}"}, "the first text has one mask only"
        assert "{}" not in found["data"][2 * classes :]


def test_selected_outputs(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "token_classification"), return_offsets_mapping=True).client

    def names(**fields: Any) -> list[str]:
        return [found["name"] for found in infer(client, tensor(), **fields)["outputs"]]

    assert names() == names(outputs=[]) == ["output-0", "offset_mapping"]
    assert names(outputs=[{"name": "offset_mapping"}]) == ["offset_mapping"]
    assert names(outputs=[{"name": "offset_mapping"}, {"name": "output-0"}]) == ["offset_mapping", "output-0"]
    response = client.post(INFER, json={"inputs": [tensor()], "outputs": [{"name": "nope"}]})
    assert (response.status_code, response.json()["error"]) == (
        400, "Unexpected inference output 'nope' for model 'model'; there are output-0, offset_mapping, logits, "
            "probabilities, labels, truncated_tokens"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, "the body is not as expected: Object missing required field `inputs`"),
        ({"inputs": []}, "the request has 0 inputs; it takes one tensor of texts"),
        ({"inputs": [tensor(), tensor()]}, "the request has two inputs of one name"),
        ({"inputs": [{"name": "x"}]}, "the body is not as expected: Object missing required field `shape` - at `$.inputs"),
        ({"inputs": [tensor([1, 2], datatype="INT64")]}, "input 'input-0' is 'INT64'; this model takes BYTES"),
        ({"inputs": [tensor([1, 2])]}, "the data of input 'input-0' is not as expected: Expected `str`, got `int`"),
        ({"inputs": [tensor([None])]}, "the data of input 'input-0' is not as expected: Expected `str`, got `null"),
        ({"inputs": [tensor([[["a"]]], shape=[1, 1, 1])]}, "input 'input-0' has the shape [1, 1, 1]; this model takes"),
        ({"inputs": [tensor("text", shape=[1])]}, "the data of input 'input-0' is not as expected: Expected `array`"),
        ({"inputs": [tensor(shape=[3])]}, "input 'input-0' has the shape [3], which is 3 elements, but 2 are given"),
        ({"inputs": [tensor(shape=[])]}, "input 'input-0' has the shape [], which is 1 elements, but 2 are given"),
        ({"inputs": [tensor(shape=[-1])]}, "the body is not as expected: Expected `int` >= 0 - at `$.inputs[0].shape[0]`"),
        ({"inputs": [tensor([["a", "b", "c"], ["d"]], shape=[2, 2])]}, "the data of input 'input-0' is nested, but not as"),
        ({"inputs": [tensor([["a", "b"]], shape=[2])]}, "the data of input 'input-0' is nested, but not as the shape [2]"),
        ({"inputs": [tensor(["a", ["b"]], shape=[2])]}, "the data of input 'input-0' is nested, but not as the shape [2]"),
        ({"inputs": [tensor(shape=[2] * 60_000)]}, "the body is not as expected: Expected `array` of length <= 8"),
        ({"inputs": [tensor(shape=[2**62, 2**62])]}, "the body is not as expected: Expected `int` <= 2147483647"),
        ({"inputs": [tensor(name="x" * 1_000_000, shape=[7])]}, "input 'xxxxxx"),
        ({"inputs": [tensor([])]}, "input 'input-0' is empty; give at least one text"),
        ({"inputs": [tensor(["a"] * 3, shape=[1, 3])]}, "input 'input-0' has the shape [1, 3]; this model takes [texts]"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES"}]}, "input 'x' has neither data nor the parameter"),
        ({"inputs": [tensor(parameters={"binary_data_size": 5})]}, "binary_data_size of input 'input-0' must be a number of bytes, at most the 0 that follow"),
        ({"inputs": [tensor()], "id": 7}, "the body is not as expected: Expected `str | null`, got `int` - at `$.id`"),
        ({"inputs": [tensor()], "parameters": []}, "the body is not as expected: Expected `object | null`, got `array`"),
    ],
)  # fmt: skip
def test_wrong_requests(client: TestClient, body: dict[str, Any], error: str) -> None:
    response = client.post(INFER, json=body)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}
    assert response.json()["error"].startswith(error)
    assert len(response.content) < 500, "an error must not repeat the input"


def binary_request(payload: bytes, size: Any = None, header: Any = None, **fields: Any) -> dict[str, Any]:
    described = {"name": "input-0", "shape": [2], "datatype": "BYTES",
                 "parameters": {"binary_data_size": len(payload) if size is None else size}}  # fmt: skip
    head = json.dumps({"inputs": [described]} | fields).encode()
    return {
        "content": head + payload,
        "headers": {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(len(head) if header is None else header),
        },
    }


ELEMENTS = b"".join(struct.pack("<I", len(text)) + text.encode() for text in TEXTS)


@pytest.mark.parametrize("content_type", ["application/octet-stream", "application/json"])
def test_binary_input(client: TestClient, content_type: str) -> None:
    request = binary_request(ELEMENTS)
    request["headers"]["content-type"] = content_type
    assert client.post(INFER, **request).json()["outputs"] == infer(client, tensor())["outputs"]


@pytest.mark.parametrize(
    ("fields", "binary"),
    [
        ({"parameters": {"binary_data_output": True}}, [True, True]),
        ({"outputs": [{"name": "output-0", "parameters": {"binary_data": True}}, {"name": "offset_mapping"}]}, [True, False]),
        ({"parameters": {"binary_data_output": True},
          "outputs": [{"name": "output-0", "parameters": {"binary_data": False}}, {"name": "offset_mapping"}]}, [False, True]),
    ],
)  # fmt: skip
def test_binary_output(fields: dict[str, Any], binary: list[bool], model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "token_classification"), return_offsets_mapping=True).client
    expected = infer(client, tensor())["outputs"]
    response = client.post(INFER, json={"inputs": [tensor()]} | fields)
    assert response.headers["content-type"] == "application/octet-stream"
    assert int(response.headers["content-length"]) == len(response.content)
    length = int(response.headers["inference-header-content-length"])
    rest = response.content[length:]
    for found, wanted, is_binary in zip(
        json.loads(response.content[:length])["outputs"], expected, binary, strict=True
    ):
        if is_binary:
            size = found.pop("parameters")["binary_data_size"]
            found["data"] = np.frombuffer(rest[:size], "<i8").tolist()
            rest = rest[size:]
        assert found == wanted
    assert rest == b""


def test_binary_strings_come_back(client: TestClient) -> None:
    parameters = {"binary_data_output": True, "return_probabilities": True}
    response = client.post(INFER, json={"inputs": [tensor()], "parameters": parameters})
    rest = response.content[int(response.headers["inference-header-content-length"]) :]
    for text in output(client, TEXTS, return_probabilities=True)["data"]:
        assert rest[: len(text) + 4] == struct.pack("<I", len(text)) + text.encode()
        rest = rest[len(text) + 4 :]
    assert rest == b""


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (binary_request(ELEMENTS, size=3), "the data of input 'input-0' ends inside the length of element 0"),
        (binary_request(ELEMENTS, size="x"), "binary_data_size of input 'input-0' must be a number of bytes, at most the 32 that"),
        (binary_request(ELEMENTS, header="x"), "inference-header-content-length must be a number of bytes, at most"),
        (binary_request(ELEMENTS, header=99999), "inference-header-content-length must be a number of bytes, at most"),
        (binary_request(ELEMENTS, header="9" * 5000), "inference-header-content-length must be a number of bytes, at most"),
        (binary_request(ELEMENTS, header=10), "the body is not valid JSON: "),
        (binary_request(ELEMENTS[:-2]), "the data of input 'input-0' says that element 1 has 3 bytes, but 1 are left"),
        (binary_request(ELEMENTS[:-5]), "the data of input 'input-0' ends inside the length of element 1"),
        (binary_request(b"\x01\x00\x00\x00\xff"), "element 0 of the data of input 'input-0' is not UTF-8"),
        (binary_request(b"\xff\xff\xff\xff"), "the data of input 'input-0' says that element 0 has 4294967295 bytes"),
        (binary_request(ELEMENTS[:25]), "input 'input-0' has the shape [2], which is 2 elements, but 1 are given"),
        ({"content": b"{}", "headers": {"content-type": "application/octet-stream"}}, "a binary body needs the header"),
        ({"json": {"inputs": [tensor()]}, "headers": {"inference-header-content-length": "5"}}, "the body is not valid"),
    ],
)  # fmt: skip
def test_wrong_binary_requests(client: TestClient, request_: dict[str, Any], error: str) -> None:
    response = client.post(INFER, **request_)
    assert response.status_code == 400
    assert response.json()["error"].startswith(error)
