from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve

PREDICT = "/v1/models/model:predict"


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification"), max_request_bytes=5000).client


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", 200, {"status": "alive"}),
        ("/v1/models/nope", 404, {"error": "Model with name nope does not exist. This server has model."}),
        ("/v1/models/no/pe", 404, {"error": "Model with name no/pe does not exist. This server has model."}),
    ],
)
def test_get(client: TestClient, path: str, status: int, body: dict[str, Any]) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (status, body)
    assert response.headers["content-type"] == "application/json"


def test_lists_are_for_clients_of_both_protocols(client: TestClient) -> None:
    """KServe's read `models` and `name`, OpenAI's `data` and `id`."""
    listed, one = client.get("/v1/models").json(), client.get("/v1/models/model").json()
    assert (listed["models"], listed["object"]) == (["model"], "list")
    assert (one["name"], one["ready"]) == ("model", True)
    assert {name: value for name, value in one.items() if name not in ("name", "ready")} == listed["data"][0]
    assert listed["data"][0] == {"id": "model", "object": "model", "owned_by": "bentoml-huggingface-runtime"} | {
        "created": one["created"], "root": "model", "parent": None, "max_model_len": 512,
        "task": "sequence_classification", "capabilities": ["classify", "pooling"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        {"instances": ["a b", "c"]},
        {"inputs": ["a b", "c"]},
        {"inputs": ["a b", "c"], "instances": ["ignored"]},
        {"instances": [{"text": "a b"}, {"text": "c", "text_pair": None}]},
        {"instances": ["a b", "c"], "parameters": None, "signature_name": "serving_default"},
    ],
)
def test_forms_of_a_body(client: TestClient, body: dict[str, Any]) -> None:
    response = client.post(PREDICT, json=body)
    assert response.status_code == 200
    assert response.json() == client.post(PREDICT, json={"instances": ["a b", "c"]}).json()
    assert [type(label) for label in response.json()["predictions"]] == [int, int]


def test_one_text_instead_of_a_list(client: TestClient) -> None:
    assert len(client.post(PREDICT, json={"instances": "a b"}).json()["predictions"]) == 1


@pytest.mark.parametrize(
    "content_type",
    [None, "application/json", "application/json; charset=utf-8", 'APPLICATION/JSON;charset="UTF-8"',
     "application/x-www-form-urlencoded"],
)  # fmt: skip
def test_content_types_that_are_json(client: TestClient, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert client.post(PREDICT, content=b'{"instances": ["a"]}', headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "the body is empty; it must be a JSON object"),
        (b"{", 400, "the body is not valid JSON: Input data was truncated"),
        (b"[]", 400, "the body is not as expected: Expected `object`, got `array`"),
        (b'"text"', 400, "the body is not as expected: Expected `object`, got `str`"),
        (b"{}", 400, "the body has neither 'instances' nor 'inputs'; give a list of texts in one of them"),
        (b'{"instances": []}', 400, "'instances' is empty; give at least one text"),
        (b'{"inputs": []}', 400, "'inputs' is empty; give at least one text"),
        (b'{"instances": null}', 400, "the body is not as expected: Expected `str | array`, got `null` - at `$.instances`"),
        (b'{"instances": [1]}', 400,
         "the body is not as expected: Expected `str | object | array`, got `int` - at `$.instances[0]`"),
        (b'{"instances": ["a", null]}', 400,
         "the body is not as expected: Expected `str | object | array`, got `null` - at `$.instances[1]`"),
        (b'{"instances": [{"txt": "a"}]}', 400,
         "the body is not as expected: Object contains unknown field `txt` - at `$.instances[0]`"),
        (b'{"instances": [["a"]]}', 400, "instances[0] has 1 texts; a pair is a list of two"),
        (b'{"inputs": [["a", "b", "c"]]}', 400, "inputs[0] has 3 texts; a pair is a list of two"),
        (b'{"instances": ["a"], "parameters": {"return_probabilities": 1}}', 400,
         "the parameter return_probabilities must be true or false"),
        (b'{"instances": ["a"], "parameters": {"return_probabilities": true, "return_raw_logits": true}}', 400,
         "the parameters return_probabilities and return_raw_logits exclude each other"),
        (b'{"instances": ["\\ud800"]}', 400, "the body is not valid JSON: "),
        (b'{"instances": ["\xff"]}', 400, "the body is not valid JSON: "),
        (b'{"x":' + b"[" * 2000, 413, "2001 levels of nesting are more than the 64 that --max_json_depth allows"),
        (b'{"instances": ["' + b"a" * 5000 + b'"]}', 413, "the body has 5019 bytes; at most 5000 are allowed"),
    ],
)  # fmt: skip
def test_wrong_bodies(client: TestClient, body: bytes, status: int, error: str) -> None:
    response = client.post(PREDICT, content=body)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert response.json()["error"].startswith(error)
    assert len(response.content) < 200, "an error must not repeat the input"


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"content-type": "text/xml"}, "the content type text/xml is not supported; send application/json"),
        ({"content-type": "application/octet-stream"}, "the content type application/octet-stream is not supported;"),
        ({"content-type": "application/json; charset=latin-1"}, "the charset latin-1 is not supported; send utf-8"),
        (
            {"content-encoding": "br"},
            "the content encoding br is not supported; send gzip, deflate or the body as it is",
        ),
    ],
)
def test_wrong_types(client: TestClient, headers: dict[str, str], error: str) -> None:
    response = client.post(PREDICT, content=b'{"instances": ["a"]}', headers=headers)
    assert response.status_code == 415
    assert response.json()["error"].startswith(error)


def test_a_body_without_a_length_is_refused_as_it_arrives(client: TestClient) -> None:
    sent = []

    def chunks() -> Any:
        for _ in range(100):
            sent.append(1)
            yield b" " * 1000

    response = client.post(PREDICT, content=chunks())
    assert (response.status_code, response.json()) == (
        413, {"error": "the body has more than 5000 bytes, which are allowed at most"}
    )  # fmt: skip
    assert len(sent) == 100, "the server must read on, or a client that only sends would never see the answer"


def test_a_model_name_with_a_slash_and_a_colon(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), model_name="org/bert:1").client
    assert client.get("/v1/models/org/bert:1").status_code == 200
    assert client.get("/v1/models/org%2Fbert:1").status_code == 200
    assert client.post("/v1/models/org/bert:1:predict", json={"instances": ["a"]}).status_code == 200
    assert client.post("/v2/models/org/bert:1/infer", json={}).status_code == 400


@pytest.mark.parametrize(
    ("task", "instances", "error"),
    [
        ("fill_mask", ["a [MASK]", "no mask"], "text 1 cannot be served: it has no mask: write [MASK] where a word"),
        ("fill_mask", ["word " * 600 + "[MASK]"],
         "text 0 cannot be served: it has no mask in the 512 tokens to which it was truncated: write [MASK]"),
        ("token_classification", ["a", ["a", "b"]], "text 1 is a pair, and token_classification takes single texts"),
        ("text_embedding", [["a", "b"]], "text 0 is a pair, and text_embedding takes single texts"),
    ],
)  # fmt: skip
def test_texts_that_a_task_cannot_take(
    task: str, instances: list[Any], error: str, model_folder: ModelFolder, serve: Serve
) -> None:
    response = serve(model_dir=model_folder("bert", task)).client.post(PREDICT, json={"instances": instances})
    assert response.status_code == 400
    assert response.json()["error"].startswith(error)


def test_a_text_without_tokens(model_folder: ModelFolder, serve: Serve) -> None:
    """An empty text is [CLS] [SEP]; without special tokens nothing is left (KServe answers 500)."""
    folder = model_folder("bert", "sequence_classification")
    assert serve(model_dir=folder).client.post(PREDICT, json={"instances": [""]}).status_code == 200
    response = serve(model_dir=folder, disable_special_tokens=True).client.post(PREDICT, json={"instances": ["a", ""]})
    assert (response.status_code, response.json()) == (400, {"error": "text 1 cannot be served: it has no tokens"})


def test_operator_defaults_can_be_changed_by_a_request(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), return_probabilities=True).client

    def predict(**parameters: bool) -> Any:
        return client.post(PREDICT, json={"instances": ["a"], "parameters": parameters}).json()["predictions"][0]

    assert abs(sum(predict().values()) - 1) < 0.001
    assert abs(sum(predict(return_raw_logits=True).values()) - 1) > 0.01
    assert isinstance(predict(return_probabilities=False), int)
