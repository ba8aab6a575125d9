"""One server of several models: every protocol reaches each, and errors name what there is."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import grpc
import jsonschema
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.application import create_application
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runners.core.admission import Admission
from runners.core.arguments import Arguments
from runners.core.engine_arguments import EngineArgument
from runners.generator.runner import GeneratorRunner
from runners.generator.vllm.openai_application import VllmOpenAIApplication
from tests.conftest import Dial, GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.served import Served, ServedOverGrpc, models_of
from tests.wire import WIRES

Declared = dict[str, dict[str, Any]]
TEXT = "Hello world"
NAMES = ["sentiment", "mood", "ner", "embedder", "reranker", "filler", "llm", "idle"]
MOOD = {"served_model_name": EngineArgument("sentiment mood", "the test")}
SHORT = {"max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def declared(model_folder: ModelFolder, generator_folder: GeneratorFolder) -> Declared:
    """The models by name and version."""
    return {
        "sentiment": {
            "model_dir": model_folder("bert", "sequence_classification"),
            "model_name": "sentiment",
            "engine": MOOD,
        },
        "ner 2": {"model_dir": model_folder("electra", "token_classification"), "model_name": "ner", "version": "2"},
        "ner 1": {"model_dir": model_folder("distilbert", "token_classification"), "model_name": "ner"},
        "embedder": {"model_dir": model_folder("bert", "text_embedding"), "model_name": "embedder"},
        "reranker": {"model_dir": model_folder("roberta", "text_ranking"), "model_name": "reranker"},
        "filler": {"model_dir": model_folder("albert", "fill_mask"), "model_name": "filler"},
        "llm": {"model_dir": generator_folder("llama"), "model_name": "llm", "backend": "huggingface"},
        "idle": {"model_dir": model_folder("bert", "fill_mask"), "model_name": "idle", "load": False},
    }


@pytest.fixture(scope="module")
def served(declared: Declared, serve_several: ServeSeveral, dial: Dial) -> ServedOverGrpc:
    started = serve_several(*declared.values(), enable_repository=True)
    return ServedOverGrpc(started.client, started.models, started.arguments, dial(started))


@pytest.fixture(scope="module")
def client(served: ServedOverGrpc) -> TestClient:
    return served.client


@pytest.fixture(scope="module")
def alone(declared: Declared, serve_several: ServeSeveral, dial: Dial) -> Callable[[str], ServedOverGrpc]:
    """A server of one of the models."""
    started: dict[str, ServedOverGrpc] = {}

    def start(key: str) -> ServedOverGrpc:
        if key not in started:
            made = serve_several(declared[key])
            started[key] = ServedOverGrpc(made.client, made.models, made.arguments, dial(made))
        return started[key]

    return start


def post(client: TestClient, path: str, body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return without_ids(response.json())


def message_of(response: Any) -> str:
    error = response.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


@pytest.mark.parametrize("name", ["sentiment", "ner 1", "ner 2", "embedder", "filler", "llm"])
def test_every_wire_reaches_every_model(
    name: str, served: ServedOverGrpc, alone: Callable[[str], ServedOverGrpc]
) -> None:
    """V1, and the Open Inference Protocol over REST and gRPC, answer as a server of that model alone."""
    model, _, version = name.partition(" ")
    texts = [TEXT + " [MASK]"] if model == "filler" else [TEXT]
    request = {"inputs": [{"name": "input-0", "shape": [1], "datatype": "BYTES", "data": texts}]}
    if model == "llm":
        request["parameters"] = SHORT  # type: ignore[assignment]
    if not version:
        instances: dict[str, Any] = {"instances": texts, "parameters": request.get("parameters", {})}
        assert post(served.client, f"/v1/models/{model}:predict", instances) == post(
            alone(name).client, f"/v1/models/{model}:predict", instances
        )
        for wire in WIRES:
            expected = wire(alone(name).client, alone(name).channel, model, request)
            assert wire(served.client, served.channel, model, request) == expected
    else:
        path = f"/v2/models/{model}/versions/{version}/infer"
        answer = post(served.client, path, request)
        assert answer == post(alone(name).client, path, request)
        assert answer["model_version"] == version


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/openai/v1/chat/completions", "llm", {"messages": [{"role": "user", "content": TEXT}], **SHORT}),
        ("/v1/completions", "llm", {"prompt": TEXT, **SHORT}),
        ("/v1/responses", "llm", {"input": TEXT, "temperature": 0, "max_output_tokens": 4}),
        ("/tokenize", "llm", {"prompt": TEXT}),
        ("/detokenize", "llm", {"tokens": [5, 6]}),
        ("/v1/embeddings", "embedder", {"input": TEXT}),
        ("/v1/rerank", "embedder", {"query": TEXT, "documents": ["a", "b"]}),
        ("/v2/rerank", "reranker", {"query": TEXT, "documents": ["a", "b"]}),
        ("/openai/rerank", "reranker", {"query": TEXT, "documents": ["a", "b"]}),
        ("/openai/v1/score", "reranker", {"text_1": TEXT, "text_2": ["a", "b"]}),
        ("/v1/score", "embedder", {"text_1": TEXT, "text_2": ["a", "b"]}),
        ("/v1/classify", "sentiment", {"input": TEXT}),
        ("/classify", "reranker", {"input": [TEXT, "a"]}),
        ("/v1/pooling", "embedder", {"input": TEXT}),
        ("/pooling", "sentiment", {"input": TEXT}),
        ("/openai/pooling", "reranker", {"input": TEXT}),
        ("/tokenize", "filler", {"prompt": TEXT}),
        ("/openai/detokenize", "embedder", {"tokens": [5, 6]}),
    ],
)
def test_openai_picks_by_the_body(
    path: str, name: str, body: Any, client: TestClient, alone: Callable[[str], ServedOverGrpc]
) -> None:
    for sent in (client.post(path, json={**body, "model": name}), client.post(path, json={"model": name, **body})):
        expected = alone(name).client.post(path, json={**body, "model": name})
        assert sent.status_code == expected.status_code
        assert without_ids(sent.json()) == without_ids(expected.json())


def without_ids(answer: Any) -> Any:
    """The answer, and the messages in it, without what differs from answer to answer."""
    if isinstance(answer, list):
        return [without_ids(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    return {name: without_ids(each) for name, each in answer.items() if name not in ("id", "created", "created_at")}


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [
        ("/embed", None, {"inputs": TEXT}),
        ("/embed", "embedder", {"inputs": TEXT}),
        ("/rerank", None, {"query": TEXT, "texts": ["a", "b"]}),
        ("/predict", "sentiment", {"inputs": TEXT}),
        ("/predict", "mood", {"inputs": TEXT}),
        ("/predict", "reranker", {"inputs": [TEXT, "a"]}),
    ],
)
def test_tei_picks_by_the_task_or_the_query(
    path: str, name: str | None, body: Any, client: TestClient, alone: Callable[[str], ServedOverGrpc]
) -> None:
    only = {"/embed": "embedder", "/rerank": "reranker"}.get(path) or ("sentiment" if name == "mood" else str(name))
    query = f"?model={name}" if name else ""
    assert post(client, path + query, body) == post(alone(only).client, path, body)


ALL = "sentiment, mood, ner, embedder, reranker, filler, llm, idle"
TASKS = (
    "sentiment (sequence_classification), ner (token_classification), embedder (text_embedding), "
    "reranker (text_ranking), filler (fill_mask), llm (text_generation), idle (not loaded)"
)


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        # Without a name, the only model of the call answers.
        ("/v1/completions", {"prompt": TEXT}, 200, None, ""),
        ("/v1/completions", {"prompt": TEXT, "model": ""}, 200, None, ""),
        ("/v1/embeddings", {"input": TEXT, "model": None}, 200, None, ""),
        # So it does under a name that clients write where they know none.
        ("/v1/embeddings", {"input": TEXT, "model": "text-embeddings-inference"}, 200, None, ""),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": TEXT}], "model": "dummy"}, 200, None, ""),
        (
            "/v1/rerank", {"query": TEXT, "documents": ["a"], "model": "tei"}, 400, "model",
            "several models serve /v1/rerank; name one with model in the body: embedder, reranker",
        ),
        (
            "/v1/rerank", {"query": TEXT, "documents": ["a"]}, 400, "model",
            "several models serve /v1/rerank; name one with model in the body: embedder, reranker",
        ),
        (
            "/v1/messages", {"messages": []}, 400, None,
            f"no model of this server serves /v1/messages; it has {TASKS}",
        ),
        ("/v1/embeddings", {"input": TEXT, "model": "nobody"}, 404, "model",
            f"Model with name nobody does not exist. This server has {ALL}."),
        ("/v1/messages", {"model": "nobody"}, 404, "model",
            f"Model with name nobody does not exist. This server has {ALL}."),
        ("/v1/embeddings", {"input": TEXT, "model": "idle"}, 503, None, "Model with name idle is not ready."),
        (
            "/openai/v1/score", {"text_1": TEXT, "text_2": TEXT, "model": "mood"}, 400, "model",
            "sentiment does not serve /openai/v1/score: it serves sequence_classification at "
            "/v1/models/sentiment:predict, /v2/models/sentiment/infer, /v1/classify, /v1/pooling; models that serve it: "
            "embedder, reranker",
        ),
        ("/v1/embeddings", {"input": TEXT, "model": 5}, 400, "model",
            "the body is not as expected: Expected `str | null`, got `int` - at `$.model`"),
    ],
)  # fmt: skip
def test_selection_by_openai_s_body(
    path: str, body: Any, status: int, param: str | None, message: str, client: TestClient
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    answer = response.json()
    if status != 200:
        assert (answer["error"]["message"], answer["error"]["param"]) == (message, param)
    else:
        assert answer["model"] in ("llm", "embedder")


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/predict", 422, "several models serve /predict; name one with ?model=: sentiment, reranker"),
        ("/embed?model=nobody", 404, f"Model with name nobody does not exist. This server has {ALL}."),
        ("/embed?model=idle", 503, "Model with name idle is not ready."),
        (
            "/embed?model=ner", 424,
            "ner does not serve /embed: it serves token_classification at /v1/models/ner:predict, "
            "/v2/models/ner/infer, /v1/pooling; models that serve it: embedder",
        ),
    ],
)  # fmt: skip
def test_selection_by_tei_s_query(path: str, status: int, message: str, client: TestClient) -> None:
    response = client.post(path, json={"inputs": TEXT})
    assert (response.status_code, response.json()["error"]) == (status, message)


def test_paths_of_other_protocols_name_what_there_is(client: TestClient) -> None:
    for path in ("/v1/models/nobody", "/v2/models/nobody", "/openai/v1/models/nobody"):
        response = client.get(path)
        assert response.status_code == 404
        assert message_of(response) == f"Model with name nobody does not exist. This server has {ALL}."
    response = client.get("/v2/models/ner/versions/3")
    assert (response.status_code, message_of(response)) == (404, "Model ner has no version 3; it has versions 1, 2.")
    response = client.get("/v1/models/idle")
    assert (response.status_code, message_of(response)) == (503, "Model with name idle is not ready.")


@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models"])
def test_the_list(path: str, client: TestClient) -> None:
    listed = client.get(path).json()
    assert listed["models"] == NAMES
    cards = {card["id"]: card for card in listed["data"]}
    assert list(cards) == NAMES
    ranking, classes = ["rerank", "score"], ["classify", "pooling"]
    described = {name: (card["root"], card["task"], card["capabilities"]) for name, card in cards.items()}
    assert described == {
        "sentiment": ("sentiment", "sequence_classification", classes),
        "mood": ("sentiment", "sequence_classification", classes),
        "ner": ("ner", "token_classification", ["pooling"]),
        "embedder": ("embedder", "text_embedding", ["embeddings", *ranking, "pooling"]),
        "reranker": ("reranker", "text_ranking", [*ranking, *classes]),
        "filler": ("filler", "fill_mask", []),
        "llm": ("llm", "text_generation", ["completions", "chat/completions", "responses"]),
        "idle": ("idle", None, []),
    }
    assert cards["idle"]["max_model_len"] is None
    assert all(card["max_model_len"] > 0 for name, card in cards.items() if name != "idle")
    for name in NAMES:
        assert client.get(f"/openai/v1/models/{name}").json() == cards[name]
    assert client.get("/v1/models/mood").json() == {"name": "sentiment", "ready": True, **cards["mood"]}


def test_health_of_grpc(served: ServedOverGrpc) -> None:
    check = health_pb2_grpc.HealthStub(served.channel).Check
    serving = {name: check(health_pb2.HealthCheckRequest(service=name)).status for name in ("", *NAMES)}
    ready = health_pb2.HealthCheckResponse.SERVING
    assert serving == {"": ready, **dict.fromkeys(NAMES, ready), "idle": health_pb2.HealthCheckResponse.NOT_SERVING}


def test_errors_of_grpc(served: ServedOverGrpc) -> None:
    stub: Any = GRPCInferenceServiceStub(served.channel)  # type: ignore[no-untyped-call]
    for name, code, message in (
        ("nobody", grpc.StatusCode.NOT_FOUND, f"Model with name nobody does not exist. This server has {ALL}."),
        ("idle", grpc.StatusCode.UNAVAILABLE, "Model with name idle is not ready."),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            stub.ModelInfer(messages.ModelInferRequest(model_name=name))
        assert (raised.value.code(), raised.value.details()) == (code, message)


def test_every_example_is_answered_by_the_model_that_it_names(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    seen = set()
    for path, item in document["paths"].items():
        for operation in item.values():
            content = operation.get("requestBody", {"content": {}})["content"]
            for key, example in content.get("application/json", {}).get("examples", {}).items():
                name = key.partition(": ")[0]
                assert example["summary"].startswith(f"{name}: ")
                seen.add(name)
                in_query = any(each["in"] == "query" for each in operation["parameters"])
                url = path.replace("{name}", name).replace("/versions/{version}", "")
                response = client.post(url, json=example["value"], params={"model": name} if in_query else None)
                assert response.status_code == 200, (path, key, response.text)
                if response.headers["content-type"] == "application/json":
                    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
                    jsonschema.validate(response.json(), {**schema, "components": document["components"]})
    assert seen == {*NAMES} - {"mood", "idle"}


def test_the_document_has_all_names_versions_and_calls(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    parameters = document["paths"]["/v2/models/{name}/versions/{version}/infer"]["post"]["parameters"]
    assert {each["name"]: each["schema"]["enum"] for each in parameters if each["in"] == "path"} == {
        "name": NAMES, "version": ["1", "2"],
    }  # fmt: skip
    for path in ("/v1/completions", "/v1/embeddings", "/v2/rerank", "/embed", "/rerank", "/openai/rerank"):
        assert "200" in document["paths"][path]["post"]["responses"]
    assert document["paths"]["/v1/messages"]["post"]["summary"] == "Not served by this server's models"
    [query] = [each for each in document["paths"]["/predict"]["post"]["parameters"] if each["in"] == "query"]
    assert (query["name"], query["required"]) == ("model", False)
    assert query["schema"]["enum"] == ["sentiment", "mood", "reranker"]


def test_the_document_and_the_selection_follow_loads_and_unloads(
    serve_several: ServeSeveral, declared: Declared
) -> None:
    served = serve_several(declared["sentiment"], declared["embedder"] | {"load": False}, enable_repository=True)
    client = served.client

    def is_described() -> bool:
        answers = client.get("/openapi.json").json()["paths"]["/embed"]["post"]["responses"]
        return "200" in answers

    refused = client.post("/embed", json={"inputs": TEXT})
    assert (refused.status_code, message_of(refused)) == (
        424, "no model of this server serves /embed; it has sentiment (sequence_classification), embedder (not loaded)",
    )  # fmt: skip
    assert not is_described()
    assert client.post("/v2/repository/models/embedder/load").status_code == 200
    assert client.post("/embed", json={"inputs": TEXT}).status_code == 200
    assert is_described()
    assert client.post("/v2/repository/models/embedder/unload").status_code == 200
    assert client.post("/embed", json={"inputs": TEXT}).status_code == 424
    assert not is_described()


def test_models_that_are_being_loaded(declared: Declared) -> None:
    """What an encoder serves is unknown until it is loaded, so the client may try again."""
    runners = [
        SimpleNamespace(name=name, names=(name,), version="1", ready=False, generator=None, task=None)
        for name in ("a", "b")
    ]
    client = TestClient(create_application(models_of(*runners), Arguments()), raise_server_exceptions=False)
    for path in ("/embed", "/v1/embeddings"):
        response = client.post(path, json={"inputs": TEXT, "input": TEXT})
        assert (response.status_code, message_of(response)) == (503, "Model with name a is not ready.")


def test_a_server_without_models() -> None:
    client = TestClient(create_application(models_of(), Arguments()), raise_server_exceptions=False)
    for path in ("/embed", "/v1/embeddings", "/v1/messages"):
        response = client.post(path, json={"inputs": TEXT, "input": TEXT})
        assert (response.status_code, message_of(response)) == (
            424 if path == "/embed" else 400, f"no model of this server serves {path}; it has no models",
        )  # fmt: skip
    named = client.post("/v1/embeddings", json={"input": TEXT, "model": "a"})
    assert (named.status_code, message_of(named)) == (404, "Model with name a does not exist.")
    assert client.get("/v1/models").json() == {"object": "list", "data": [], "models": []}
    assert client.get("/openapi.json").status_code == 200


# Two models on vLLM, whose applications are not real, beside an embedder of this server's engine.


@pytest.fixture(scope="module")
def beside_vllm(model_folder: ModelFolder, serve: Serve) -> TestClient:
    embedder: Served = serve(model_dir=model_folder("bert", "text_embedding"), model_name="embedder")
    further = ["/v1/audio/transcriptions", "/v1/responses/{id}/cancel"]
    responses = ["/v1/responses/{id}", "/v1/responses/{id}/deep"]
    large = vllm_runner("large", ["/v1/completions", *responses, "/v1/load_lora_adapter", *further], ["large", "lora"])
    small = vllm_runner("small", ["/v1/completions", "/v1/embeddings", *further], ["small"])
    application = create_application(
        models_of(large, small, embedder.runner), Arguments(enable_repository=True), "/openai"
    )
    return TestClient(application, raise_server_exceptions=False)


def vllm_runner(name: str, paths: list[str], cards: list[str]) -> GeneratorRunner:
    async def answer(request: Request) -> JSONResponse:
        content_type = request.headers["content-type"]
        return JSONResponse({"by": name, "body": (await request.body()).decode(), "type": content_type})

    async def show_available_models() -> Any:
        return SimpleNamespace(model_dump=lambda mode: {"data": [{"id": each} for each in cards]})

    inner = FastAPI(routes=[Route(path, answer, methods=["GET", "POST"]) for path in paths])
    inner.state.openai_serving_models = SimpleNamespace(show_available_models=show_available_models)

    class Runner(GeneratorRunner):
        ready = True
        openai_application = VllmOpenAIApplication(inner, Admission(Arguments()))

    return Runner(Arguments(model_name=name))


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "found"),
    [
        ("POST", "/v1/completions", '{"model": "small", "prompt": "a"}', 200, "small"),
        ("POST", "/openai/v1/completions", '{"prompt": "a", "model": "large"}', 200, "large"),
        # An adapter belongs to the model that lists it, and keeps its name.
        ("POST", "/v1/completions", '{"model": "lora"}', 200, "large"),
        ("POST", "/v1/completions", '{"model": "nobody"}', 404, "This server has large, small, embedder."),
        ("POST", "/v1/completions", '{"prompt": "a"}', 400, "name one with model in the body: large, small"),
        ("POST", "/v1/embeddings", '{"model": "small"}', 200, "small"),
        ("POST", "/v1/embeddings", '{"model": "embedder", "input": "a"}', 200, "embedding"),
        ("GET", "/openai/v1/responses/1", None, 200, "large"),
        ("GET", "/openai/v1/responses/1?model=small", None, 400, "models that serve it: large"),
        ("POST", "/openai/v1/load_lora_adapter", '{"lora_name": "b"}', 200, "large"),
        ("POST", "/openai/v1/load_lora_adapter?model=large", '{"lora_name": "b"}', 200, "large"),
        ("GET", "/openai/rerank", None, 405, "GET is not allowed"),
        # Of calls that only vLLM knows, those without a body name the model in the query.
        ("POST", "/openai/v1/responses/1/cancel?model=small", None, 200, "small"),
        ("POST", "/openai/v1/responses/1/cancel?model=lora", None, 200, "large"),
        ("POST", "/openai/v1/responses/1/cancel", '{"model": "small"}', 200, "small"),
        ("POST", "/openai/v1/responses/1/cancel", None, 400, "name one with ?model=: large, small"),
        ("POST", "/openai/v1/responses/1/deep", None, 200, "large"),
        ("POST", "/openai/v1/responses/1/cancel?model=nobody", None, 404, "This server has large, small, embedder."),
        ("POST", "/v1/completions?model=small", None, 400, "the body is empty"),
    ],
)
def test_forwarding(method: str, path: str, body: str | None, status: int, found: str, beside_vllm: TestClient) -> None:
    response = beside_vllm.request(method, path, content=body)
    assert response.status_code == status, response.text
    assert found in (response.json().get("by") or response.text)
    if status == 200 and "by" in response.json():
        assert response.json()["body"] == (body or "")


FORM = {"content-type": "multipart/form-data; boundary=B"}
FILE = '--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nsound\r\n--B--\r\n'


@pytest.mark.parametrize(
    ("path", "status", "found"),
    [
        ("/openai/v1/audio/transcriptions?model=small", 200, "small"),
        ("/openai/v1/audio/transcriptions", 400, "name one with ?model=: large, small"),
        ("/openai/v1/completions?model=small", 415, "multipart/form-data is not supported"),
    ],
)
def test_forms_are_forwarded(path: str, status: int, found: str, beside_vllm: TestClient) -> None:
    """They name the model in the query, and keep their type, whose boundary they need."""
    response = beside_vllm.post(path, content=FILE, headers=FORM)
    assert response.status_code == status, response.text
    assert found in response.text
    if status == 200:
        assert response.json() == {"by": "small", "body": FILE, "type": FORM["content-type"]}


@pytest.mark.parametrize(
    ("characters", "body", "logged"),
    [
        (0, '{"prompt": "a secret"}', []),
        (14, '{"prompt": "a secret"}', [['{"prompt": "a ']]),
        (14, '{"prompt": "é secret"}', [['{"prompt": "é ']]),
        (14, '{"prompt": ["a", "b", "c", "d", "e"]}', [['{"prompt": ["a']]),
    ],
)
def test_the_begin_of_a_forwarded_body_is_logged(
    characters: int, body: str, logged: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    models = models_of(vllm_runner("large", ["/v1/completions"], ["large"]))
    client = TestClient(create_application(models, Arguments(log_inputs=characters), "/openai"))
    with caplog.at_level("DEBUG"):
        assert client.post("/v1/completions", content=body).json()["body"] == body
    assert [vars(record)["inputs"] for record in caplog.records if "inputs" in vars(record)] == logged
    assert "secret" not in f"{caplog.text}{logged}"


@pytest.mark.parametrize(
    ("cards", "sent", "name"),
    [
        (["large"], "tgi", "large"),
        (["large"], "dummy", "large"),
        (["large", "tgi"], "tgi", "tgi"),
        (["large"], "a", "a"),
    ],
)
def test_vllm_reads_its_own_name_for_a_placeholder(cards: list[str], sent: str, name: str) -> None:
    models = models_of(vllm_runner("large", ["/v1/chat/completions"], cards))
    client = TestClient(create_application(models, Arguments(), "/openai"))
    answer = client.post("/v1/chat/completions", json={"model": sent, "messages": [], "n": 1}).json()
    assert json.loads(answer["body"]) == {"model": name, "messages": [], "n": 1}


def test_the_list_beside_vllm(beside_vllm: TestClient) -> None:
    cards = beside_vllm.get("/v1/models").json()["data"]
    assert {card["id"]: card["capabilities"] for card in cards} == {
        "large": ["completions"], "lora": ["completions"], "small": ["completions", "embeddings"],
        "embedder": ["embeddings", "rerank", "score", "pooling"],
    }  # fmt: skip
