"""A server in front of a predictor answers as a server that has the model itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from sentence_transformers import SentenceTransformer
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.open_inference.predictor.client import connect_predictor
from runners.core.arguments import Arguments
from runners.core.errors import (
    ArgumentsError,
    ModelNotReadyError,
    PredictorAnswerError,
    PredictorTimeoutError,
    PredictorUnavailableError,
)
from runners.core.predictions import TextInput
from runners.core.task import Task
from runners.encoder.runner import EncoderRunner
from runners.hosting.selection import create_runner
from tests.architectures.models import save_model
from tests.architectures.registry import Pair
from tests.conftest import Certificate, Dial, ModelFolder, Serve
from tests.embedders import save_embedder
from tests.families import AUTO_CLASSES
from tests.predictors import Compute, GrpcPredictor, RestPredictor
from tests.servers import free_port
from tests.waiting import eventually, wait_until

TASKS = ("fill_mask", "sequence_classification", "text_embedding", "text_ranking", "token_classification")
PREDICT = "/v1/models/model:predict"
INFER = "/v2/models/model/infer"
TOLERANCE = 2e-5


@pytest.fixture
def closing() -> Iterator[Callable[[Any], Any]]:
    """`closing(predictor)` is closed after the test."""
    made: list[Any] = []

    def remember(predictor: Any) -> Any:
        made.append(predictor)
        return predictor

    yield remember
    for predictor in made:
        predictor.close()


def local_model(folder: Path, task: str) -> Compute:
    """The model's own output as Triton has it, [texts, tokens, ...], from `transformers`."""
    model = AUTO_CLASSES[task].from_pretrained(folder).eval()

    def compute(tensors: dict[str, Any]) -> Any:
        with torch.no_grad():
            output = model(**{name: torch.from_numpy(array.astype(np.int64)) for name, array in tensors.items()})
        return (output.last_hidden_state if task == "text_embedding" else output.logits).numpy()

    return compute


def pooled_model(folder: Path, dimensions: int) -> Compute:
    """Means of the token vectors, [texts, dimensions]."""
    hidden = local_model(folder, "text_embedding")

    def compute(tensors: dict[str, Any]) -> Any:
        mask = tensors["attention_mask"][:, :, None]
        return ((hidden(tensors) * mask).sum(axis=1) / mask.sum(axis=1))[:, :dimensions].astype(np.float32)

    return compute


def texts(task: str, family: str = "bert") -> list[str]:
    mask = "<mask>" if family == "roberta" else "[MASK]"
    masks = [f"{mask} is cute", f"{mask}{mask} " + "word " * 700, f"My {mask} is {mask} and {mask}", f"a {mask}"]
    return masks if task == "fill_mask" else ["É", "Hello, my dog is cute", "word " * 700, "a b c", *masks]


def answers(client: TestClient, task: str, family: str = "bert") -> list[Any]:
    """What all protocols and outputs say of the texts, one request a text and all in one."""
    given = texts(task, family)
    scores = ["output-0", "logits", "probabilities"]
    names = {"text_embedding": ["output-0"], "text_ranking": [*scores, "relevance"]}.get(task, [*scores, "labels"])
    tensor = {"name": "input-0", "shape": [len(given)], "datatype": "BYTES", "data": given}
    bodies = [
        (PREDICT, {"instances": given}),
        *((PREDICT, {"instances": [text]}) for text in given),
        (INFER, {"id": "1", "inputs": [tensor], "outputs": [{"name": name} for name in names]}),
    ]
    results = []
    for path, body in bodies:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        results.append(response.json())
    return results


def assert_close(found: Any, expected: Any) -> None:
    match expected:
        case dict():
            assert list(found) == list(expected)
            for key, value in expected.items():
                assert_close(found[key], value)
        case [float(), *_]:
            np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        case list():
            assert len(found) == len(expected)
            for one, wanted in zip(found, expected, strict=True):
                assert_close(one, wanted)
        case float():
            assert found == pytest.approx(expected, abs=TOLERANCE)
        case _:
            assert found == expected


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("family", "protocol"),
    [("bert", "v2"), ("bert", "grpc-v2"), ("roberta", "v2"), ("modernbert", "v2"), ("deberta-v2", "v2")],
)
def test_this_server_as_predictor(
    family: str,
    protocol: str,
    task: str,
    model_folder: ModelFolder,
    serve: Serve,
    dial: Dial,
    closing: Callable[[Any], Any],
) -> None:
    folder = model_folder(family, task)
    served = serve(model_dir=folder)
    local = served.client
    if protocol == "v2":
        host = closing(RestPredictor(local.app)).host
    else:
        # A limit that a few masks' logits are above: such batches are halved.
        dial(served, grpc_port=(port := free_port()), grpc_max_send_message_length=400_000)
        host = f"127.0.0.1:{port}"
    remote = serve(model_dir=folder, predictor_host=host, predictor_protocol=protocol).client
    found = answers(remote, task, family)
    assert_close(found, answers(local, task, family))
    assert remote.get("/v2/models/model").json() == local.get("/v2/models/model").json()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_model_that_answers_for_every_token(
    family: str, task: str, model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any]
) -> None:
    """As an exported model on Triton does: hidden states are pooled here, masks picked here."""
    folder = model_folder(family, task)
    predictor = closing(GrpcPredictor(local_model(folder, task)))
    remote = serve(model_dir=folder, predictor_host=predictor.host, predictor_protocol="grpc-v2").client
    assert_close(answers(remote, task, family), answers(serve(model_dir=folder).client, task, family))
    assert max(len(request.raw_input_contents) for request in predictor.infers) == (2 if family == "roberta" else 3)


@pytest.mark.parametrize("answered", [32, 20])
def test_vectors_that_a_predictor_has_pooled(
    answered: int, model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Whole, or cut as the model's files say: the answer is the same."""
    save_embedder(tmp_path, model_folder("bert", "text_embedding"), truncate_dim=20)
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    predictor = closing(GrpcPredictor(pooled_model(tmp_path, answered)))
    remote = serve(model_dir=tmp_path, predictor_host=predictor.host, predictor_protocol="grpc-v2").client
    given = ["Hello, my dog is cute", "a b c"]
    for dimensions, expected in {None: 20, 8: 8, 20: 20}.items():
        parameters = {} if dimensions is None else {"dimensions": dimensions}
        response = remote.post(PREDICT, json={"instances": given, "parameters": parameters})
        vectors = reference.encode(given, truncate_dim=expected)
        np.testing.assert_allclose(response.json()["predictions"], vectors, atol=TOLERANCE)
    refusal = remote.post(PREDICT, json={"instances": given, "parameters": {"dimensions": 21}})
    assert (refusal.status_code, refusal.json()) == (400, {"error": "dimensions is 21; the model's vectors have 20"})


@pytest.mark.parametrize(
    ("datatype", "raw", "tolerance"),
    [("FP32", False, 1e-6), ("FP64", False, 1e-6), ("FP64", True, 1e-6), ("FP16", True, 1e-2), ("BF16", True, 1e-1)],
)
@pytest.mark.parametrize("integers", ["INT32", "INT64"])
def test_datatypes(
    integers: str,
    datatype: str,
    raw: bool,
    tolerance: float,
    model_folder: ModelFolder,
    closing: Callable[[Any], Any],
) -> None:
    compute = local_model(model_folder("bert", "sequence_classification"), "sequence_classification")
    inputs = {"input_ids": integers, "attention_mask": integers}
    predictor = closing(GrpcPredictor(compute, inputs, datatype=datatype, raw=raw))
    connection = closing(connect_predictor(Arguments(predictor_host=predictor.host, predictor_protocol="grpc-v2")))
    tensors = {name: np.ones((2, 3), np.int64) for name in inputs}
    np.testing.assert_allclose(connection.infer(tensors), compute(tensors), atol=tolerance)
    assert {tensor.datatype for tensor in predictor.infers[0].inputs} == {integers}


def test_only_the_tensors_that_are_named_are_sent(
    model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any]
) -> None:
    """Without attention_mask nothing tells the predictor what is padding: it gets texts of one length at a time."""
    folder = model_folder("bert", "token_classification")
    predictor = closing(GrpcPredictor(local_model(folder, "token_classification")))
    remote = serve(
        model_dir=folder, predictor_host=predictor.host, predictor_protocol="grpc-v2", tensor_input_names="input_ids"
    ).client
    assert_close(
        answers(remote, "token_classification"), answers(serve(model_dir=folder).client, "token_classification")
    )
    assert {tensor.name for request in predictor.infers for tensor in request.inputs} == {"input_ids"}


def test_a_model_whose_tokenizer_pads_on_the_left_gets_no_padding(
    serve: Serve, closing: Callable[[Any], Any], tmp_path: Path
) -> None:
    """XLNet classifies by the last column, which on the right may be padding."""
    save_model(Pair("xlnet", Task.SEQUENCE_CLASSIFICATION), tmp_path)
    predictor = closing(GrpcPredictor(local_model(tmp_path, "sequence_classification")))
    remote = serve(model_dir=tmp_path, predictor_host=predictor.host, predictor_protocol="grpc-v2").client
    body = {"instances": ["Good Rome.", "a longer text " * 9, "Rome is good."], "parameters": {"top_k": 5}}
    found, expected = (
        client.post("/v1/models/model:predict", json=body).json()["predictions"]
        for client in (remote, serve(model_dir=tmp_path).client)
    )
    for labels, stock in zip(found, expected, strict=True):
        assert [label["label"] for label in labels] == [label["label"] for label in stock]
        assert [label["score"] for label in labels] == pytest.approx([label["score"] for label in stock], abs=1e-5)


Answer = Callable[[Request], Any]


def stand_in(infer: Answer, model: Any = None, extensions: tuple[str, ...] = ()) -> Starlette:
    """A predictor over REST that answers `infer` as the test says: JSON, or a whole response."""
    described = {"inputs": [], "outputs": [{"name": "logits", "datatype": "FP32"}]} if model is None else model

    async def answer(request: Request) -> Response:
        path = request.url.path
        if path.endswith("/infer"):
            await request.body()
            body = infer(request)
            if asyncio.iscoroutine(body):
                body = await body
        elif path == "/v2":
            body = {"name": "stand-in", "version": "1", "extensions": list(extensions)}
        else:
            body = described
        return body if isinstance(body, Response) else Response(orjson.dumps(body))

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


def logits(data: Any, shape: list[int], datatype: str = "FP32", name: str = "logits") -> dict[str, Any]:
    return {"outputs": [{"name": name, "shape": shape, "datatype": datatype, "data": data}]}


def failure(status: int, error: str = "no can do") -> Response:
    return Response(orjson.dumps({"error": error}), status)


NO_OUTPUTS: dict[str, list[str]] = {"inputs": [], "outputs": []}


@pytest.mark.parametrize(
    ("model", "answer", "status", "message"),
    [
        (None, logits([0.0] * 5, [1, 5]), 200, ""),
        (None, logits([[0.0] * 5], [1, 5], "FP64"), 200, ""),
        (NO_OUTPUTS, logits([0.0] * 5, [1, 5], name="anything"), 200, ""),
        (None, logits([0.0] * 3, [1, 3]), 502, "the predictor answered with the shape [1, 3]; for 1 texts of up to 3 tokens the model's is [1, 5]"),
        (None, logits([0.0], []), 502, "the predictor answered with the shape []; for 1 texts of up to 3 tokens the model's is [1, 5]"),
        (None, logits([0.0] * 4, [1, 5]), 502, "the predictor's answer is wrong: output 'logits' has the shape [1, 5], which is 5 elements, but 4 are given"),
        (None, logits(["a"] * 5, [1, 5], "BYTES"), 502, "the predictor's output logits is of texts; logits are numbers"),
        (None, {"outputs": []}, 502, "the predictor's model must have an output logits, or only one; it has none"),
        (None, {"predictions": []}, 502, "the predictor's answer is not as expected: Object missing required field `outputs`"),
        (None, Response(b"<html>"), 502, "the predictor's answer is not valid JSON: JSON is malformed: invalid character (byte 0)"),
        ({"inputs": [], "outputs": [{"name": "a", "datatype": "FP32"}, {"name": "b", "datatype": "FP32"}]}, {}, 502,
         "the predictor's model must have an output logits, or only one; it has a, b"),
        ({"inputs": [{"name": "ids", "datatype": "INT64"}], "outputs": []}, {}, 502,
         "the predictor's model has no input input_ids of numbers, it has ids: set tensor_input_names to what it is to be sent"),
        (failure(404, "Model with name model does not exist."), {}, 502,
         "the predictor answered with an error: 404, Model with name model does not exist."),
        (None, failure(500, "broken\n" * 100), 502, f"the predictor answered with an error: 500, {('broken ' * 100)[:200]} ..."),
        (None, failure(400), 502, "the predictor refuses the tensors: 400, no can do"),
        (None, failure(503, "loading"), 503, "the predictor is not available: 503, loading"),
        (None, Response(b"<html>", 502), 503, "the predictor is not available: 502"),
        (None, failure(429), 503, "the predictor is not available: 429, no can do"),
        (None, failure(504), 504, "the predictor was too slow: 504, no can do"),
    ],
)  # fmt: skip
def test_wrong_answers(
    model: Any,
    answer: Any,
    status: int,
    message: str,
    model_folder: ModelFolder,
    serve: Serve,
    closing: Callable[[Any], Any],
) -> None:
    folder = model_folder("bert", "sequence_classification")
    predictor = closing(RestPredictor(stand_in(lambda _: answer, model)))
    response = serve(model_dir=folder, predictor_host=predictor.host).client.post(PREDICT, json={"instances": ["a"]})
    expected = {"predictions": [0]} if status == 200 else {"error": message}
    assert (response.status_code, response.json()) == (status, expected)


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_a_predictor_that_is_down_and_comes_back(
    protocol: str, model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any]
) -> None:
    folder = model_folder("bert", "sequence_classification")
    port = free_port()
    client = serve(model_dir=folder, predictor_host=f"127.0.0.1:{port}", predictor_protocol=protocol).client
    assert client.get("/v2/health/ready").status_code == 200
    response = client.post(PREDICT, json={"instances": ["a", "b"]})
    words = ", or its model is not ready" if protocol == "grpc-v2" else ""
    assert (response.status_code, response.json()) == (503, {"error": f"the predictor cannot be reached{words}"})
    if protocol == "v2":
        local = serve(model_dir=folder).client
        closing(RestPredictor(local.app, port))
        body = {"instances": ["a", "b"]}
        assert client.post(PREDICT, json=body).json() == local.post(PREDICT, json=body).json()


def test_a_slow_predictor(closing: Callable[[Any], Any]) -> None:
    """The time-out is of the whole call, also where bytes trickle in; it is not tried again."""

    async def trickle(send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(50):
            await asyncio.sleep(0.1)
            await send({"type": "http.response.body", "body": b" ", "more_body": True})

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await trickle(send)

    predictor = closing(RestPredictor(application))
    arguments = Arguments(
        predictor_host=predictor.host, predictor_request_timeout_seconds=0.5, predictor_request_retries=3
    )
    connection = closing(connect_predictor(arguments))
    start = time.monotonic()
    with pytest.raises(PredictorTimeoutError, match="did not answer within predictor_request_timeout_seconds"):
        connection.infer({"input_ids": np.ones((1, 1), np.int64)})
    assert 0.4 < time.monotonic() - start < 2
    assert len(predictor.requests) == 1


def test_a_slow_predictor_over_grpc(closing: Callable[[Any], Any]) -> None:
    def compute(_: Any) -> Any:
        time.sleep(1)
        raise ValueError

    predictor = closing(GrpcPredictor(compute))
    arguments = Arguments(
        predictor_host=predictor.host, predictor_protocol="grpc-v2", predictor_request_timeout_seconds=0.3
    )
    connection = closing(connect_predictor(arguments))
    with pytest.raises(PredictorTimeoutError):
        connection.infer({"input_ids": np.ones((1, 1), np.int64)})


@pytest.mark.parametrize(("failures", "retries", "asked"), [(2, 2, 3), (2, 1, 2), (1, 0, 1)])
def test_retries(failures: int, retries: int, asked: int, closing: Callable[[Any], Any]) -> None:
    """A 503 is tried again, after a while, as often as the operator says."""
    seen: list[Any] = []

    def infer(request: Request) -> Any:
        seen.append(request)
        return failure(503) if len(seen) <= failures else logits([0.0], [1, 1])

    predictor = closing(RestPredictor(stand_in(infer)))
    connection = closing(connect_predictor(Arguments(predictor_host=predictor.host, predictor_request_retries=retries)))
    tensors = {"input_ids": np.ones((1, 1), np.int64)}
    if failures > retries:
        with pytest.raises(PredictorUnavailableError):
            connection.infer(tensors)
    else:
        assert connection.infer(tensors).tolist() == [[0.0]]
    assert len(seen) == asked


def test_metadata_is_read_once_and_after_an_error(closing: Callable[[Any], Any]) -> None:
    results = [logits([0.0], [1, 1]), logits([0.0], [1, 1]), failure(500), logits([0.0], [1, 1])]
    predictor = closing(RestPredictor(stand_in(lambda _: results.pop(0))))
    connection = closing(connect_predictor(Arguments(predictor_host=predictor.host)))
    tensors = {"input_ids": np.ones((1, 1), np.int64)}
    connection.infer(tensors)
    connection.infer(tensors)
    with pytest.raises(PredictorAnswerError):
        connection.infer(tensors)
    connection.infer(tensors)
    model = "/v2/models/model"
    assert predictor.requests == ["/v2", model, *[f"{model}/infer"] * 3, "/v2", model, f"{model}/infer"]


async def run_together(arguments: Arguments, given: list[str]) -> list[Any]:
    """Ask a runner for each text in a request of its own, all at once."""

    runner = EncoderRunner(arguments, connect_predictor)
    await runner.load()
    try:
        return await asyncio.gather(
            *(runner.infer([TextInput(text)], runner.default_options) for text in given), return_exceptions=True
        )
    finally:
        runner.close()


async def test_a_failed_predictor_is_asked_once_a_batch(
    model_folder: ModelFolder, closing: Callable[[Any], Any]
) -> None:
    predictor = closing(RestPredictor(stand_in(lambda _: failure(503))))
    folder = model_folder("bert", "sequence_classification")
    found = await run_together(Arguments(model_dir=str(folder), predictor_host=predictor.host), ["a"] * 20)
    assert [type(answer) for answer in found] == [PredictorUnavailableError] * 20
    asked = sum(path.endswith("/infer") for path in predictor.requests)
    assert asked < 10, "batches, not texts"


async def test_a_predictor_that_takes_only_small_batches(
    model_folder: ModelFolder, closing: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Triton refuses more texts than its max_batch_size: what is refused is halved."""
    folder = model_folder("bert", "sequence_classification")
    model = local_model(folder, "sequence_classification")

    def compute(tensors: dict[str, Any]) -> Any:
        if len(tensors["input_ids"]) > 4:
            raise ValueError("inference request batch-size must be <= 4")
        return model(tensors)

    predictor = closing(GrpcPredictor(compute))
    arguments = Arguments(model_dir=str(folder), predictor_host=predictor.host, predictor_protocol="grpc-v2")
    found = await run_together(arguments, [f"text {number}" for number in range(24)])
    assert not [answer for answer in found if isinstance(answer, Exception)]
    assert caplog.text.count("refuses the tensors: inference request batch-size must be <= 4; this is said once") == 1


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_readiness_follows_the_predictor_where_asked(
    protocol: str, model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any]
) -> None:
    folder = model_folder("bert", "sequence_classification")
    model = local_model(folder, "sequence_classification")
    local = serve(model_dir=folder).client
    predictor: Any = GrpcPredictor(model) if protocol == "grpc-v2" else RestPredictor(local.app)
    closing(predictor)
    common = {"model_dir": folder, "predictor_host": predictor.host, "predictor_protocol": protocol}
    client, unchecked = serve(**common, enable_predictor_health_check=True).client, serve(**common).client
    assert client.get("/v2/health/ready").status_code == 200
    predictor.close()
    wait_until(lambda: client.get("/v2/health/ready").status_code == 503)
    assert client.post(PREDICT, json={"instances": ["a"]}).json() == {"error": "Model with name model is not ready."}
    assert client.get("/v2/health/live").status_code == 200
    assert unchecked.get("/v2/health/ready").status_code == 200
    if protocol == "v2":
        closing(RestPredictor(local.app, predictor.port))
        wait_until(lambda: client.get("/v2/health/ready").status_code == 200)
        assert client.post(PREDICT, json={"instances": ["a"]}).status_code == 200


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
async def test_close_does_not_wait_for_a_predictor_that_hangs(
    protocol: str, model_folder: ModelFolder, closing: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runners.core.device_thread._LONGEST_TURN_SECONDS", 0.2)
    folder = model_folder("bert", "sequence_classification")

    asked = threading.Event()

    def hang(_: Any) -> Any:
        asked.set()
        time.sleep(3)
        raise ValueError

    async def hang_longer(_: Any) -> None:
        asked.set()
        await asyncio.sleep(60)

    predictor: Any = GrpcPredictor(hang) if protocol == "grpc-v2" else RestPredictor(stand_in(hang_longer))
    closing(predictor)

    arguments = Arguments(
        model_dir=str(folder), predictor_host=predictor.host, predictor_protocol=protocol,
        enable_predictor_health_check=True,
    )  # fmt: skip
    runner = EncoderRunner(arguments, connect_predictor)
    await runner.load()
    waiting = asyncio.create_task(runner.infer([TextInput("a")], runner.default_options))
    await eventually(asked.is_set)
    start = time.monotonic()
    await asyncio.to_thread(runner.close)
    with pytest.raises(PredictorUnavailableError):
        await waiting
    assert time.monotonic() - start < 2
    with pytest.raises(ModelNotReadyError):
        await runner.infer([TextInput("a")], runner.default_options)


async def test_unload_and_load(model_folder: ModelFolder, serve: Serve, closing: Callable[[Any], Any]) -> None:
    folder = model_folder("bert", "sequence_classification")
    predictor = closing(RestPredictor(serve(model_dir=folder).client.app))

    runner = EncoderRunner(Arguments(model_dir=str(folder), predictor_host=predictor.host), connect_predictor)
    for _ in range(2):
        await runner.load()
        assert len(await runner.infer([TextInput("a")], runner.default_options)) == 1
        await runner.unload()
        assert not runner.ready
    runner.close()


def test_a_generator_has_no_predictor() -> None:
    with pytest.raises(ArgumentsError, match="predictor_host is for encoders, and this model generates"):
        create_runner(Arguments(task=Task.TEXT_GENERATION, predictor_host="triton:8001"), connect_predictor)


def test_no_weights_are_loaded(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    """A folder without any is enough."""
    for file in model_folder("bert", "sequence_classification").iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    client = serve(model_dir=tmp_path, predictor_host=f"127.0.0.1:{free_port()}").client
    assert client.get("/v2/models/model").json()["properties"]["max_length"] == "512"


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_tls(
    protocol: str,
    model_folder: ModelFolder,
    serve: Serve,
    dial: Dial,
    closing: Callable[[Any], Any],
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The certificates of SSL_CERT_FILE are trusted over both wires; others are not."""
    folder = model_folder("bert", "sequence_classification")
    served = serve(model_dir=folder)
    local = served.client
    if protocol == "v2":
        port = closing(
            RestPredictor(local.app, ssl_keyfile=str(certificate.key), ssl_certfile=str(certificate.certificate))
        ).port
    else:
        dial(
            served,
            grpc_port=(port := free_port()),
            ssl_keyfile=str(certificate.key),
            ssl_certfile=str(certificate.certificate),
        )
    common = {"predictor_host": f"localhost:{port}", "predictor_protocol": protocol, "predictor_use_ssl": True}
    distrustful = serve(model_dir=folder, **common).client
    assert distrustful.post(PREDICT, json={"instances": ["a"]}).status_code == 503
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.authority))
    response = serve(model_dir=folder, **common).client.post(PREDICT, json={"instances": ["a"]})
    assert (response.status_code, response.json()) == (200, local.post(PREDICT, json={"instances": ["a"]}).json())
