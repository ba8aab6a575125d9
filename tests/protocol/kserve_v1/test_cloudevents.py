"""CloudEvents, as the SDK of KServe's clients writes and reads them."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve

PREDICT = "/v1/models/model:predict"
CALL = {"instances": ["a b", "c"]}
ATTRIBUTES = {
    "specversion": "1.0", "id": "42", "source": "https://here.example/source", "type": "com.example.asked",
    "time": "2024-01-01T00:00:00Z", "subject": "texts", "datacontenttype": "application/json", "tenant": "blue",
}  # fmt: skip
STRUCTURED = "application/cloudevents+json"
MODES = pytest.mark.parametrize(("mode", "convert"), [("structured", to_structured), ("binary", to_binary)])


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification"), return_probabilities=True).client


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CE_MERGE", "CE_TYPE", "CE_SOURCE"):
        monkeypatch.delenv(name, raising=False)


def ask(client: TestClient, event: CloudEvent, convert: Any, path: str = PREDICT) -> CloudEvent:
    headers, body = convert(event)
    response = client.post(path, content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == (STRUCTURED if convert is to_structured else "application/json")
    assert ("ce-id" in response.headers) == (convert is to_binary)
    return from_http(response.headers, response.content)


@MODES
@pytest.mark.parametrize("version", ["1.0", "0.3"])
def test_an_event_is_answered_in_its_mode(client: TestClient, mode: str, convert: Any, version: str) -> None:
    answer = ask(client, CloudEvent(ATTRIBUTES | {"specversion": version}, CALL), convert)
    assert answer.data == client.post(PREDICT, json=CALL).json()
    attributes = answer.get_attributes()
    assert attributes["id"] != ATTRIBUTES["id"]
    assert attributes["time"] != ATTRIBUTES["time"]
    expected = {"specversion": "1.0", "type": "io.kserve.inference.response", "source": "io.kserve.inference.model"}
    # The SDK takes it from the content type.
    own = {"id", "time", "datacontenttype"} if mode == "binary" else {"id", "time"}
    assert {name: value for name, value in attributes.items() if name not in own} == expected
    assert set(attributes) == own | set(expected)


@MODES
def test_attributes_are_merged_if_the_environment_says_so(
    client: TestClient, mode: str, convert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CE_MERGE", "True")
    monkeypatch.setenv("CE_TYPE", "com.example.answered")
    monkeypatch.setenv("CE_SOURCE", "https://there.example/source")
    answer = ask(client, CloudEvent(ATTRIBUTES, CALL), convert).get_attributes()
    assert answer["id"] != ATTRIBUTES["id"]
    assert answer["time"] != ATTRIBUTES["time"]
    assert {name: value for name, value in answer.items() if name not in ("id", "time")} == {
        "specversion": "1.0", "type": "com.example.answered", "source": "https://there.example/source",
        "subject": "texts", "datacontenttype": "application/json", "tenant": "blue",
    }  # fmt: skip


@MODES
def test_the_source_is_a_uri(model_folder: ModelFolder, serve: Serve, mode: str, convert: Any) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), model_name="org/bért:1 €").client
    answer = ask(client, CloudEvent(ATTRIBUTES, CALL), convert, "/v1/models/org/b%C3%A9rt:1 €:predict")
    assert answer["source"] == "io.kserve.inference.org/b%C3%A9rt:1%20%E2%82%AC"


def test_an_event_without_optional_attributes(client: TestClient) -> None:
    """KServe takes a structured one for an event only if it has a time."""
    event = {name: ATTRIBUTES[name] for name in ("specversion", "id", "source", "type")} | {"subject": None}
    for data in ({"data": CALL}, {"data_base64": base64.b64encode(json.dumps(CALL).encode()).decode()}):
        body = json.dumps(event | data)
        response = client.post(PREDICT, content=body, headers={"content-type": f"{STRUCTURED}; charset=utf-8"})
        assert (response.status_code, len(response.json()["data"]["predictions"])) == (200, 2)


def test_merging_what_is_not_there(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """KServe answers 500 to an event without a time."""
    monkeypatch.setenv("CE_MERGE", "true")
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "here", "ce-type": "asked", "ce-extensions": "x"}
    response = client.post(PREDICT, json=CALL, headers=headers)
    assert (response.status_code, response.headers["ce-extensions"]) == (200, "x")


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in ATTRIBUTES.items() if name not in names}


WRONG_ATTRIBUTES: list[tuple[dict[str, Any], str]] = [
    (without("type"), "the event has no type: each must be a string that is not empty"),
    (without("id", "source"), "the event has no id, source: each must be a string that is not empty"),
    (without("specversion"), "the event has no specversion: each must be a string that is not empty"),
    (ATTRIBUTES | {"id": ""}, "the event has no id: each must be a string that is not empty"),
    (ATTRIBUTES | {"specversion": "2.0"}, "the event's specversion is 2.0; this server takes 1.0 and 0.3"),
]


@pytest.mark.parametrize(("attributes", "error"), WRONG_ATTRIBUTES)
@pytest.mark.parametrize("structured", [True, False])
def test_wrong_attributes(client: TestClient, attributes: dict[str, Any], error: str, structured: bool) -> None:
    if structured:
        response = client.post(
            PREDICT, content=json.dumps(attributes | {"data": CALL}), headers={"content-type": STRUCTURED}
        )
    else:
        response = client.post(PREDICT, json=CALL, headers={f"ce-{name}": value for name, value in attributes.items()})
    assert (response.status_code, response.json()) == (400, {"error": error})
    assert response.headers["content-type"] == "application/json"
    assert "ce-id" not in response.headers


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"{", "the event is not valid JSON: "),
        (b"[]", "the event is not as expected: Expected `object`, got `array`"),
        ({}, "the event has no data: it must be an object, as the body of a request without an event"),
        ({"data": None}, "the event's data is not as expected: Expected `object`, got `null`"),
        ({"data": [1]}, "the event's data is not as expected: Expected `object`, got `array`"),
        ({"data": '{"instances": ["a"]}'}, "the event's data is not as expected: Expected `object`, got `str`"),
        ({"data": {}}, "the body has neither 'instances' nor 'inputs'; give a list of texts in one of them"),
        ({"data": {"instances": [1]}}, "the event's data is not as expected: Expected `str | object | array`, got `int` - at `$.instances[0]`"),
        ({"data_base64": 1}, "the event's data_base64 is not as expected: Expected `bytes`, got `int`"),
        ({"data_base64": "%"}, "the event's data_base64 is not as expected: Invalid base64 encoded string"),
        ({"data_base64": "AAAA"}, "the event's data is not valid JSON: "),
        ({"data": CALL, "id": 42}, "the event has no id: each must be a string that is not empty"),
        (b'{"x": ' + b"[" * 50, "the event is not valid JSON: "),
    ],
)  # fmt: skip
def test_wrong_structured_events(client: TestClient, body: Any, error: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(ATTRIBUTES | body)
    response = client.post(PREDICT, content=content, headers={"content-type": STRUCTURED})
    assert (response.status_code, set(response.json())) == (400, {"error"})
    assert response.json()["error"].startswith(error)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "error"),
    [
        (b"[1]", "application/json", 400, "the event's data is not as expected: Expected `object`, got `array`"),
        (b"{", "application/json", 400, "the event's data is not valid JSON: Input data was truncated"),
        (b"", "application/json", 400, "the body is empty; it must be a JSON object"),
        (b"{}", "application/avro", 415, "the content type application/avro is not supported; send application/json or "
         "application/cloudevents+json"),
        (b"[]", "application/cloudevents-batch+json", 415, "the content type application/cloudevents-batch+json is not "),
    ],
)  # fmt: skip
def test_wrong_binary_events(client: TestClient, body: bytes, content_type: str, status: int, error: str) -> None:
    headers = {f"ce-{name}": value for name, value in ATTRIBUTES.items()} | {"content-type": content_type}
    response = client.post(PREDICT, content=body, headers=headers)
    assert response.status_code == status
    assert response.json()["error"].startswith(error)


def test_other_protocols_take_no_events(client: TestClient) -> None:
    response = client.post("/v2/models/model/infer", content=b"{}", headers={"content-type": STRUCTURED})
    assert response.status_code == 415


def test_a_header_that_belongs_to_no_event(client: TestClient) -> None:
    response = client.post(PREDICT, json=CALL, headers={"ce-tenant": "blue"})
    assert (response.status_code, set(response.json())) == (200, {"predictions"})


@MODES
def test_errors_of_the_model_are_no_events(client: TestClient, mode: str, convert: Any) -> None:
    headers, body = convert(CloudEvent(ATTRIBUTES, {"instances": []}))
    response = client.post(PREDICT, content=body, headers=headers)
    assert (response.status_code, response.json()) == (400, {"error": "'instances' is empty; give at least one text"})
