"""Vertex AI's contract for containers, with the bodies that users of its containers send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.application import create_application
from protocol.clouds.invocations import Invocations
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.families import MINILM
from tests.protocol.conftest import Run
from tests.protocol.huggingface.pipelines import check_records, reference
from tests.served import Served

# What Vertex AI names unless the model says otherwise.
ROUTE = "/v1/endpoints/1/deployedModels/2:predict"
TEXTS = ["I love Munich", "My film is good."]
CHAT = {"messages": [{"role": "user", "content": "The panda"}], "max_tokens": 4, "temperature": 0}
KEY = {"authorization": "Bearer secret"}


def at(served: Served, route: str = ROUTE) -> TestClient:
    return TestClient(create_application(served.models, served.arguments, predict_route=route))


@pytest.fixture(scope="module")
def generator(generator_folder: GeneratorFolder, serve: Serve) -> TestClient:
    return at(serve(model_dir=generator_folder("llama"), backend="huggingface"))


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return at(serve(model_dir=MINILM, model_name="minilm"))


def predict(client: TestClient, instances: list[Any], route: str = ROUTE, **more: Any) -> Any:
    response = client.post(route, json={"instances": instances, **more})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"predictions"}
    return response.json()["predictions"]


@pytest.mark.parametrize("parameters", [None, {}, {"top_k": 2}, {"function_to_apply": "sigmoid"}])
def test_text_classification(parameters: dict[str, Any] | None, run: Run) -> None:
    """A prediction is what the pipeline answers to the instance."""
    served = run("sequence_classification")
    classify = reference("text-classification", served.folder)
    expected = [classify(text, **(parameters or {})) for text in TEXTS]
    check_records(predict(at(served), TEXTS, parameters=parameters), expected)
    check_records(predict(at(served), [{"inputs": text} for text in TEXTS], parameters=parameters), expected)


@pytest.mark.parametrize(
    ("kind", "instances", "parameters"),
    [
        ("fill_mask", ["It is [MASK].", "[MASK] and [MASK]."], {"top_k": 2}),
        ("token_classification", TEXTS, {"aggregation_strategy": "simple"}),
        ("token_classification", TEXTS, {"ignore_labels": []}),
        ("zero_shot_classification", TEXTS, {"candidate_labels": ["sports", "film"]}),
        ("question_answering", [{"question": "Who?", "context": "Sarah is here."}] * 2, {}),
    ],
)
def test_a_prediction_is_the_answer_to_an_instance(
    kind: str, instances: list[Any], parameters: dict[str, Any], run: Run
) -> None:
    served = run(kind)
    found = predict(at(served), instances, parameters=parameters)
    for prediction, instance in zip(found, instances, strict=True):
        answer = served.client.post("/invocations", json={"inputs": instance, "parameters": parameters})
        check_records(prediction, answer.json())


def test_embeddings(embedder: TestClient) -> None:
    vectors = embedder.post("/embed", json={"inputs": TEXTS}).json()
    assert predict(embedder, TEXTS) == vectors
    # A body has the answer that it has elsewhere.
    assert predict(embedder, [{"inputs": text, "truncate": True} for text in TEXTS]) == [[each] for each in vectors]
    [similarities] = predict(embedder, [{"source_sentence": TEXTS[0], "sentences": TEXTS}])
    assert similarities[0] == pytest.approx(1, abs=1e-5)
    [embedded, ranked] = predict(
        embedder, [{"input": TEXTS}, {"query": TEXTS[0], "documents": TEXTS, "model": "minilm"}]
    )
    assert [each["embedding"] for each in embedded["data"]] == vectors
    assert [each["index"] for each in ranked["results"]] == [0, 1]


def test_generation(generator: TestClient) -> None:
    parameters = {"max_new_tokens": 4}
    answers = [generator.post("/", json={"inputs": text, "parameters": parameters}).json() for text in TEXTS]
    assert predict(generator, TEXTS, parameters=parameters) == answers
    # As in Text Generation Inference's container: each has parameters of its own, which win.
    instances = [{"inputs": text, "parameters": {"max_new_tokens": 4}} for text in TEXTS]
    assert predict(generator, instances, parameters={"max_new_tokens": 9}) == answers
    [chat, completion] = predict(generator, [CHAT, {"prompt": TEXTS[0], "max_tokens": 4, "temperature": 0}])
    assert chat["object"] == "chat.completion"
    assert completion["choices"][0]["text"] == answers[0][0]["generated_text"]


def test_bodies_of_other_protocols(generator: TestClient, embedder: TestClient) -> None:
    """What rawPredict and streamRawPredict send."""
    for client, path, body in (
        (generator, "/v1/completions", {"prompt": "The panda", "max_tokens": 4, "temperature": 0}),
        (generator, "/v1/chat/completions", CHAT),
        (generator, "/", {"inputs": "The panda", "parameters": {"max_new_tokens": 4}}),
        (embedder, "/v1/embeddings", {"input": TEXTS}),
    ):
        found, expected = client.post(ROUTE, json=body).json(), client.post(path, json=body).json()
        for answer in (found, expected):
            if isinstance(answer, dict):
                answer |= {"id": "", "created": 0}
        assert found == expected
    streamed = generator.post(ROUTE, json={**CHAT, "stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert streamed.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"instances": []}, "instances is empty; give at least one"),
        ({"instances": "x"}, "the body is not as expected: Expected `array`, got `str` - at `$.instances`"),
        ({"instances": TEXTS, "parameters": 1}, "the body is not as expected: Expected `object | null`, got `int`"),
        ({"instances": [1]}, "the body is not as expected: Expected `str | object | array`, got `int` - at `$.instances[0]`"),
        ({"instances": ["x"], "stream": True}, "the body is not as expected: Object contains unknown field `stream`"),
        ({"instances": TEXTS, "parameters": {"topk": 1}}, "parameters has topk, which text-classification does not have"),
        ({"instances": [{"inputs": "x", "stream": True}]}, "instances[0] has stream, which rawPredict is for"),
        ({"instances": ["x", {"input": "x"}], "parameters": {"top_k": 1}}, "parameters is for inputs, but instances[1] has none"),
        ({"instances": [{"inputs": "x", "prompt": "y"}]}, "the body has the fields of several protocols: inputs, prompt"),
        ({"instances": [{"inputs": "x"}, {"inputs": 7}]}, "the body is not as expected: Expected"),
        ({}, "the body must have inputs or messages or"),
    ],
)  # fmt: skip
def test_what_is_refused(body: dict[str, Any], message: str, run: Run) -> None:
    response = at(run("sequence_classification")).post(ROUTE, json=body)
    assert response.status_code == 400, response.text
    assert response.json()["error"].startswith(message)
    assert response.json()["error_type"] == "validation"


def test_an_error_of_an_instance_has_the_form_of_its_protocol(run: Run) -> None:
    response = at(run("sequence_classification")).post(ROUTE, json={"instances": ["x", {"prompt": "x"}]})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("model does not serve /v1/completions")


@pytest.mark.parametrize("make", [lambda text: text, lambda text: {"inputs": text}], ids=["inputs", "bodies"])
def test_limits(make: Callable[[str], Any], model_folder: ModelFolder, serve: Serve) -> None:
    limits = {"max_client_batch_size": 4, "max_text_characters": 100}
    client = at(serve(model_dir=model_folder("bert", "sequence_classification"), **limits))
    for texts, limit in ((["a"] * 5, "max_client_batch_size"), (["a" * 101], "max_text_characters")):
        response = client.post(ROUTE, json={"instances": [make(text) for text in texts]})
        assert response.status_code == 413
        assert f"--{limit} allows" in response.text


def test_large_parameters_are_not_copied(model_folder: ModelFolder, serve: Serve) -> None:
    limits = {"max_text_characters": 1000, "max_labels": 2, "max_label_characters": 10}
    client = at(serve(model_dir=model_folder("bert", "sequence_classification"), **limits))
    body = {"instances": [{"inputs": "x"}] * 100, "parameters": {"junk": "a" * 2_000_000}}
    response = client.post(ROUTE, json=body)
    assert response.status_code == 413
    assert "characters of parameters and names" in response.json()["error"]


def test_more_instances_than_requests_that_may_run(model_folder: ModelFolder, serve: Serve) -> None:
    client = at(serve(model_dir=model_folder("bert", "sequence_classification"), max_concurrent_requests=3))
    texts = [f"text {number}" for number in range(40)]
    expected = predict(client, texts)
    check_records(predict(client, [{"inputs": text} for text in texts]), expected)


def test_a_failed_instance_ends_the_work_for_the_others(generator: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[bytes] = []
    answer = Invocations.answer

    async def note(self: Invocations, request: Any, body: Any, model: Any = None) -> Any:
        begun.append(body.data)
        return await answer(self, request, body, model)

    monkeypatch.setattr(Invocations, "answer", note)
    instances = [{"prompt": 7}, *[{"prompt": "The panda", "max_tokens": 100, "ignore_eos": True}] * 100]
    response = generator.post(ROUTE, json={"instances": instances})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "BadRequestError")
    assert len(begun) <= 16


@pytest.mark.parametrize("encoding", ["bytes", "bytes_only"])
def test_an_answer_that_is_not_json(encoding: str, embedder: TestClient) -> None:
    body = {"instances": [{"input": "x"}, {"input": "x", "encoding_format": encoding}]}
    response = embedder.post(ROUTE, json=body)
    assert (response.status_code, response.json()["error"]) == (
        400, "instances[1] asks for an answer that is not JSON",
    )  # fmt: skip


def test_the_answers_to_all_instances_are_bounded(serve: Serve) -> None:
    client = at(serve(model_dir=MINILM, max_answer_numbers=1000))
    assert len(predict(client, [{"input": "x"}] * 2)) == 2
    response = client.post(ROUTE, json={"instances": [{"input": "x"}] * 50})
    assert response.status_code == 413
    assert "numbers of the predictions are more than the 1000" in response.json()["error"]


def test_other_types_at_paths_that_the_server_has(run: Run) -> None:
    served = run("sequence_classification")
    headers = {"content-type": "text/plain"}
    expected = served.client.post("/invocations", content="a text", headers=headers).json()
    assert at(served, "/invocations").post("/invocations", content="a text", headers=headers).json() == expected
    for body in ({"inputs": "x", "parameters": [1]}, [1], {"inputs": 1}):
        known = served.client.post("/predict", json=body)
        found = at(served, "/predict").post("/predict", json=body)
        assert (found.status_code, found.json()) == (known.status_code, known.json())


def test_a_path_that_names_a_model(model_folder: ModelFolder, serve_several: ServeSeveral) -> None:
    declared = [{"model_name": name, "model_dir": model_folder("bert", "sequence_classification")} for name in "ab"]
    served = serve_several(*declared)
    expected = served.client.post("/models/b", json={"inputs": TEXTS[0], "parameters": {"top_k": 1}}).json()
    for instance in (TEXTS[0], {"inputs": TEXTS[0]}):
        check_records(predict(at(served, "/models/b"), [instance], "/models/b"), expected)


@pytest.mark.parametrize("path", ["/v2/health/ready", "/metrics", "/ping", "/"])
def test_a_key_is_needed_at_every_path(path: str, model_folder: ModelFolder, serve: Serve) -> None:
    client = at(serve(model_dir=model_folder("bert", "sequence_classification"), api_key="secret"), path)
    assert client.get(path).status_code == 200
    assert client.post(path, json={"instances": TEXTS}).status_code == 401
    assert client.post(path, json={"instances": TEXTS}, headers=KEY).status_code == 200


def test_paths_that_the_server_has_otherwise(model_folder: ModelFolder, serve: Serve) -> None:
    """There, only bodies with instances are Vertex AI's; V1 has instances of its own."""
    served = serve(model_dir=model_folder("bert", "sequence_classification"))
    plain = {path: served.client.post(path, json={"inputs": TEXTS[0]}).json() for path in ("/", "/predict")}
    for path, answer in plain.items():
        client = at(served, path)
        assert client.post(path, json={"inputs": TEXTS[0]}).json() == answer
        assert [{*each[0]} for each in predict(client, TEXTS, path)] == [{"label", "score"}] * 2
    assert at(served, "/").get("/").json() == {"status": "alive"}
    of_v1 = "/v1/models/model:predict"
    assert predict(at(served, of_v1), TEXTS, of_v1) == predict(served.client, TEXTS, of_v1)
    named = at(served, "/models/model")
    assert named.post("/models/model", json={"inputs": TEXTS[0]}).json() == plain["/"]


def test_a_key(model_folder: ModelFolder, serve: Serve) -> None:
    client = at(serve(model_dir=model_folder("bert", "sequence_classification"), api_key="secret"))
    assert client.post(ROUTE, json={"instances": TEXTS}).status_code == 401
    assert client.post(ROUTE, json={"instances": TEXTS}, headers=KEY).status_code == 200


def test_other_methods_and_paths(embedder: TestClient, run: Run) -> None:
    response = embedder.get(ROUTE)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert run("sequence_classification").client.post(ROUTE, json={"instances": TEXTS}).status_code == 404


def test_records_name_the_protocol(embedder: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    for body in ({"instances": TEXTS}, {"instances": [{"input": "x"}] * 2}, {"input": "x"}, {}):
        embedder.post(ROUTE, json=body)
    remove_observer(records.append)
    assert [(record.protocol, record.route, record.status) for record in records] == [
        ("vertex", ROUTE, status) for status in ("200", "200", "200", "400")
    ]


def test_the_document(embedder: TestClient, run: Run) -> None:
    document = embedder.get("/openapi.json").json()
    content = document["paths"][ROUTE]["post"]["requestBody"]["content"]["application/json"]
    assert {"$ref": "#/components/schemas/VertexRequest"} in content["schema"]["anyOf"]
    for example in content["examples"].values():
        assert embedder.post(ROUTE, json=example["value"]).status_code == 200, json.dumps(example)
    others = run("sequence_classification").client.get("/openapi.json").json()
    assert ROUTE not in others["paths"]
