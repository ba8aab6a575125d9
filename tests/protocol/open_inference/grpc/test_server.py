"""What is gRPC's own: codes, metadata, deadlines, limits, streams, health, reflection, TLS, stubs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from starlette.testclient import TestClient

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.generate import HERE, generate
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runners.core.access_log import log_latency
from runners.core.api_keys import digest_keys
from runners.core.request_record import add_observer, remove_observer
from runners.core.version import VERSION
from tests.conftest import Certificate, Dial, GeneratorFolder, ModelFolder, Serve, renew
from tests.served import Served
from tests.waiting import wait_until
from tests.wire import infer_request, read_outputs, set_parameters, to_binary

SERVICE = "inference.GRPCInferenceService"


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, serve: Serve) -> Served:
    return serve(model_dir=model_folder("bert", "sequence_classification"), enable_repository=True)


@pytest.fixture(scope="module")
def channel(served: Served, dial: Dial) -> grpc.Channel:
    return dial(served)


@pytest.fixture(scope="module")
def generator(generator_folder: GeneratorFolder, serve: Serve, dial: Dial) -> grpc.Channel:
    return dial(serve(model_dir=generator_folder("llama"), backend="huggingface"))


def stub(channel: grpc.Channel) -> Any:
    return GRPCInferenceServiceStub(channel)


def raises(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def test_server_calls(channel: grpc.Channel) -> None:
    server = stub(channel)
    assert server.ServerLive(messages.ServerLiveRequest()).live is True
    assert server.ServerReady(messages.ServerReadyRequest()).ready is True
    metadata = server.ServerMetadata(messages.ServerMetadataRequest())
    assert (metadata.name, metadata.version) == ("bentoml-huggingface-runtime", VERSION)
    assert list(metadata.extensions) == [
        "binary_tensor_data", "classification", "model_repository", "model_repository_extension",
    ]  # fmt: skip


@pytest.mark.parametrize("version", ["", "1"])
def test_model_calls(channel: grpc.Channel, served: Served, version: str) -> None:
    server = stub(channel)
    assert server.ModelReady(messages.ModelReadyRequest(name="model", version=version)).ready is True
    metadata = json_format.MessageToDict(
        server.ModelMetadata(messages.ModelMetadataRequest(name="model", version=version))
    )
    expected = served.client.get("/v2/models/model").json()
    for tensor in (*metadata["inputs"], *metadata["outputs"]):
        tensor["shape"] = [int(size) for size in tensor["shape"]]
    assert metadata == {key: value for key, value in expected.items() if key != "properties"}


@pytest.mark.parametrize(
    ("method", "request_", "code", "details"),
    [
        ("ModelReady", messages.ModelReadyRequest(name="nope"), "NOT_FOUND", "Model with name nope does not exist. This server has model."),
        ("ModelReady", messages.ModelReadyRequest(name="model", version="2"), "NOT_FOUND", "Model model has no version 2; it has version 1."),
        ("ModelMetadata", messages.ModelMetadataRequest(name="nope"), "NOT_FOUND", "Model with name nope does not exist. This server has model."),
        ("ModelInfer", infer_request("a", model_name="nope"), "NOT_FOUND", "Model with name nope does not exist. This server has model."),
        ("ModelInfer", infer_request("a", model_version="7"), "NOT_FOUND", "Model model has no version 7; it has version 1."),
        ("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="nope"), "NOT_FOUND", "Model with name nope does not exist. This server has model."),
        ("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(repository_or_model_name="nope"), "NOT_FOUND", "Model with name nope does not exist. This server has model."),
    ],
)  # fmt: skip
def test_codes(channel: grpc.Channel, method: str, request_: Any, code: str, details: str) -> None:
    error = raises(lambda: getattr(stub(channel), method)(request_))
    assert (error.code().name, error.details()) == (code, details)


def tensor(datatype: str, shape: list[int], **contents: Any) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(model_name="model")
    given = request.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(given.contents, field).extend(values)
    return request


def with_raw(request: messages.ModelInferRequest, *raw: bytes) -> messages.ModelInferRequest:
    request.raw_input_contents.extend(raw)
    return request


@pytest.mark.parametrize(
    ("request_", "details"),
    [
        (tensor("BYTES", [2], bytes_contents=[b"a"]), "input 'x' has the shape [2], which is 2 elements, but 1 are given"),
        (tensor("BYTES", [-1], bytes_contents=[b"a"]), "input 'x' has the shape [-1]; there may be 8 dimensions of 0 to 2147483647"),
        (tensor("BYTES", [2**62, 2**62], bytes_contents=[b"a"]), "input 'x' has the shape [4611686018427387904, 4611686018427387904]; there may be"),
        (tensor("BYTES", [1] * 9, bytes_contents=[b"a"]), "input 'x' has the shape [1, 1, 1, 1, 1, 1, 1, 1, 1]; there may be 8 dimensions"),
        (tensor("BYTES", [2**31 - 1, 2**31 - 1], bytes_contents=[b"a"]), "input 'x' has the shape [2147483647, 2147483647], which is"),
        (tensor("BYTES", [1], bytes_contents=[b"\xff"]), "element 0 of the data of input 'x' is not UTF-8"),
        (tensor("BYTES", [1], int64_contents=[1]), "input 'x' is BYTES, which goes into bytes_contents, not int64_contents"),
        (tensor("INT64", [1], int_contents=[1]), "input 'x' is INT64, which goes into int64_contents, not int_contents"),
        (tensor("INT8", [1], int_contents=[300]), "a number of input 'x' is out of the range of INT8"),
        (tensor("FP16", [1]), "input 'x' is FP16: it goes into raw_input_contents only"),
        (tensor("BF16", [1]), "input 'x' is BF16: it goes into raw_input_contents only"),
        (tensor("STRING", [1]), "input 'x' has the datatype 'STRING'; there are BOOL, UINT8, "),
        (tensor("FP32", [2], fp32_contents=[1, 2]), "input 'x' is 'FP32'; this model takes BYTES, or tokens as input_ids"),
        (with_raw(tensor("BYTES", [1]), b"", b""), "the number of inputs (1) does not match the expected number of raw input contents (2) for model 'model'."),
        (with_raw(tensor("BYTES", [1], bytes_contents=[b"a"]), b"\1\0\0\0a"), "contents field must not be specified when using raw_input_contents for input 'x' for model 'model'"),
        (with_raw(tensor("BYTES", [1]), b"\2\0\0\0a"), "the data of input 'x' says that element 0 has 2 bytes, but 1 are left"),
        (with_raw(tensor("BYTES", [1]), b"\1\0\0"), "the data of input 'x' ends inside the length of element 0"),
        (with_raw(tensor("FP16", [1]), b"\1\0\0"), "the data of input 'x' has 3 bytes, and FP16 has 2 each"),
        (with_raw(tensor("BF16", [2]), b"\1\0"), "input 'x' has the shape [2], which is 2 elements, but 1 are given"),
        (with_raw(tensor("BOOL", [1]), b"\2"), "the data of input 'x' has a byte that is neither 0 nor 1"),
    ],
)  # fmt: skip
def test_wrong_tensors(channel: grpc.Channel, request_: messages.ModelInferRequest, details: str) -> None:
    error = raises(lambda: stub(channel).ModelInfer(request_))
    assert error.code().name == "INVALID_ARGUMENT"
    assert error.details().startswith(details)


@pytest.mark.parametrize("method", ["ModelInfer", "ServerReady"])
def test_what_is_no_message_is_the_clients_fault(channel: grpc.Channel, method: str) -> None:
    error = raises(lambda: channel.unary_unary(f"/{SERVICE}/{method}")(b"\xff\xff\xff"))
    assert (error.code().name, error.details()) == ("INVALID_ARGUMENT", "the message is not this call's request")


def test_a_load_that_would_change_the_model_is_refused(channel: grpc.Channel) -> None:
    request = messages.RepositoryModelLoadRequest(model_name="model")
    request.parameters["config"].string_param = "{}"
    error = raises(lambda: stub(channel).RepositoryModelLoad(request))
    assert error.code().name == "INVALID_ARGUMENT"
    assert error.details() == "load takes no parameters: a model is loaded as the operator has declared it"


def test_answers_are_raw_where_the_request_is_or_asks_for_it(channel: grpc.Channel) -> None:
    typed = stub(channel).ModelInfer(infer_request("a", "b", id="my id"))
    assert (typed.model_name, typed.model_version, typed.id) == ("model", "1", "my id")
    assert not typed.raw_output_contents
    asked = stub(channel).ModelInfer(infer_request("a", "b", parameters={"binary_data_output": True}))
    raw = messages.ModelInferRequest(model_name="model", raw_input_contents=[to_binary("BYTES", ["a", "b"])])
    raw.inputs.add(name="input-0", datatype="BYTES", shape=[2])
    for answer in (asked, stub(channel).ModelInfer(raw)):
        assert len(answer.raw_output_contents) == 1
        assert read_outputs(answer) == read_outputs(typed)


def test_an_id_is_made_where_none_is_given(channel: grpc.Channel) -> None:
    ids = {stub(channel).ModelInfer(infer_request("a")).id for _ in range(2)}
    assert {len(made) for made in ids} == {36}
    assert len(ids) == 2


def test_the_clients_id_goes_back_and_to_the_log(
    served: Served, dial: Dial, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    server = stub(dial(served))
    metadata = [("x-request-id", "my id")]
    caplog.set_level("INFO")
    add_observer(log_latency)
    request.addfinalizer(lambda: remove_observer(log_latency))
    answer, call = server.ModelInfer.with_call(infer_request("a"), metadata=metadata)
    assert answer.id == "my id", "the request has none"
    assert dict(call.trailing_metadata())["x-request-id"] == "my id"
    assert server.ModelInfer(infer_request("a", id="7"), metadata=metadata).id == "7"
    error = raises(partial(server.ModelInfer, infer_request("a", model_name="nope"), metadata=metadata))
    assert dict(error.trailing_metadata())["x-request-id"] == "my id"
    line = "requestId: my id, method: gRPC, path: /inference.GRPCInferenceService/ModelInfer, status: "
    # The line may be written after the client has its answer.
    wait_until(lambda: line + "NOT_FOUND" in caplog.text)
    assert line + "OK" in caplog.text


def test_both_forms_of_a_models_name_in_the_repository(channel: grpc.Channel) -> None:
    """Triton's clients put it into field 2, KServe's into field 1."""
    for request in (
        messages.RepositoryModelLoadRequest(model_name="model"),
        messages.RepositoryModelLoadRequest(repository_or_model_name="model"),
    ):
        answer = stub(channel).RepositoryModelLoad(request)
        assert (answer.model_name, answer.is_loaded) == ("model", True)
    [listed] = stub(channel).RepositoryIndex(messages.RepositoryIndexRequest(ready=True)).models
    assert (listed.name, listed.version, listed.state, listed.reason) == ("model", "1", "READY", "")


def test_keys(served: Served, dial: Dial) -> None:
    server = stub(dial(served, api_key=digest_keys("s3cret")))
    assert server.ServerReady(messages.ServerReadyRequest()).ready is True
    for metadata in ([], [("authorization", "Bearer wrong")], [("authorization", "s3cret")]):
        for call in (
            partial(server.ModelInfer, infer_request("a"), metadata=metadata),
            partial(next, server.ModelStreamInfer(iter([infer_request("a")]), metadata=metadata)),
        ):
            error = raises(call)
            assert error.code().name == "UNAUTHENTICATED"
            assert error.details() == "this server asks for a key: send it as Authorization: Bearer KEY"
    assert server.ModelInfer(infer_request("a"), metadata=[("authorization", "Bearer s3cret")]).outputs


def test_a_call_that_expires_or_is_cancelled_leaves_the_queue(served: Served, channel: grpc.Channel) -> None:
    queue = served.runner._loaded.queue
    texts = ["word " * 400] * 3000
    before = queue._served
    error = raises(lambda: stub(channel).ModelInfer(infer_request(*texts), timeout=0.5))
    assert error.code().name == "DEADLINE_EXCEEDED"
    wait_until(lambda: queue.admission.requests == 0)
    call = stub(channel).ModelInfer.future(infer_request(*texts))
    wait_until(lambda: queue.admission.requests == 1)
    call.cancel()
    wait_until(lambda: queue.admission.requests == 0)
    assert stub(channel).ModelInfer(infer_request("a"), timeout=10).outputs
    assert queue._served - before < 3000 * 400, "what nobody waits for does not run"


def test_overload_says_when_to_try_again(served: Served, channel: grpc.Channel) -> None:
    admission = served.runner._loaded.queue.admission
    limits, admission.limits = admission.limits, admission.limits.model_copy(update={"max_concurrent_requests": 0})
    try:
        error = raises(lambda: stub(channel).ModelInfer(infer_request("a")))
    finally:
        admission.limits = limits
    assert error.code().name == "RESOURCE_EXHAUSTED"
    assert dict(error.trailing_metadata())["retry-after"] == "1"


def test_message_sizes(served: Served, dial: Dial) -> None:
    server = stub(dial(served, grpc_max_receive_message_length=10_000, grpc_max_send_message_length=2_000))
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        error = raises(partial(server.ModelInfer, infer_request("a" * 20_000), compression=compression))
        assert error.code().name == "RESOURCE_EXHAUSTED"
    error = raises(lambda: server.ModelInfer(infer_request(*["a"] * 100, parameters={"return_raw_logits": True})))
    assert error.code().name == "RESOURCE_EXHAUSTED"
    assert server.ModelInfer(infer_request("a" * 5_000), compression=grpc.Compression.Gzip).outputs


def test_a_stream_of_an_encoder(channel: grpc.Channel) -> None:
    """One answer a request; an error is one too, and leaves the others alone."""
    requests = [infer_request("a", id="1"), infer_request("b", id="2", model_name="nope"), infer_request("c", id="3")]
    found = {answer.infer_response.id: answer for answer in stub(channel).ModelStreamInfer(iter(requests))}
    assert set(found) == {"1", "2", "3"}
    assert found["2"].error_message == "Model with name nope does not exist. This server has model."
    for request in (requests[0], requests[2]):
        response = found[request.id].infer_response
        assert found[request.id].error_message == ""
        assert response.parameters["triton_final_response"].bool_param is True
        assert read_outputs(response) == read_outputs(stub(channel).ModelInfer(request))


@pytest.mark.parametrize("empty_final", [False, True])
def test_a_stream_of_a_generator(generator: grpc.Channel, empty_final: bool) -> None:
    asked = {"max_tokens": 8, "temperature": 0, "ignore_eos": True}
    [(_, _, _, [whole])] = read_outputs(stub(generator).ModelInfer(infer_request("Hello", parameters=asked)))
    requests = [
        infer_request("Hello", id=str(i), parameters={**asked, "triton_enable_empty_final_response": empty_final})
        for i in range(3)
    ]
    texts = dict.fromkeys("012", "")
    finals = []
    for answer in stub(generator).ModelStreamInfer(iter(requests)):
        response = answer.infer_response
        assert answer.error_message == ""
        [(name, datatype, shape, [text])] = read_outputs(response)
        assert (name, datatype, shape) == ("output-0", "BYTES", [1])
        texts[response.id] += text
        finals += [response.id] * response.parameters["triton_final_response"].bool_param
    assert texts == dict.fromkeys("012", whole)
    assert sorted(finals) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (infer_request("a", "b"), "the request has 2 texts; a stream continues one a request"),
        (infer_request("a", parameters={"max_tokens": 0}), "max_tokens must be at least 1"),
        (infer_request("a", parameters={"nope": 0}), "the parameter nope is unknown; there are max_new_tokens, "),
    ],
)
def test_wrong_requests_in_a_stream(
    generator: grpc.Channel, request_: messages.ModelInferRequest, message: str
) -> None:
    request_.id = "7"
    [answer] = stub(generator).ModelStreamInfer(iter([request_]))
    assert answer.error_message.startswith(message)
    assert answer.infer_response.id == "7"


def test_a_stream_that_is_left_frees_its_sequence(generator: grpc.Channel) -> None:
    stream = stub(generator).ModelStreamInfer(
        iter([infer_request("Hello", parameters={"max_tokens": 50, "ignore_eos": True})])
    )
    next(stream)
    stream.cancel()
    assert stub(generator).ModelInfer(infer_request("Hello", parameters={"max_tokens": 1}), timeout=10).outputs


def test_a_generator_continues_token_ids(generator: grpc.Channel) -> None:
    asked = {"max_tokens": 4, "temperature": 0}
    request = messages.ModelInferRequest(model_name="model")
    ids = request.inputs.add(name="input_ids", datatype="INT64", shape=[1, 3])
    ids.contents.int64_contents.extend([5, 6, 7])
    set_parameters(request.parameters, asked)
    [(_, _, shape, [text])] = read_outputs(stub(generator).ModelInfer(request))
    assert shape == [1]
    streamed = stub(generator).ModelStreamInfer(iter([request]))
    assert "".join(read_outputs(part.infer_response)[0][3][0] for part in streamed) == text != ""


@pytest.fixture
def unloaded(model_folder: ModelFolder, serve: Serve, dial: Dial) -> tuple[TestClient, grpc.Channel]:
    served = serve(model_dir=model_folder("bert", "fill_mask"), model_name="m", enable_repository=True)
    assert served.client.post("/v2/repository/models/m/unload").json() == {"name": "m", "unload": True}
    return served.client, dial(served)


def test_health(channel: grpc.Channel, unloaded: tuple[TestClient, grpc.Channel]) -> None:
    request, status = health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE, "model"):
        assert health.Check(request(service=service)).status == status.SERVING
        assert next(health.Watch(request(service=service))).status == status.SERVING
    assert raises(lambda: health.Check(request(service="nope"))).code().name == "NOT_FOUND"
    assert next(health.Watch(request(service="nope"))).status == status.SERVICE_UNKNOWN

    client, channel = unloaded
    watch = health_pb2_grpc.HealthStub(channel).Watch(request(service="m"))
    assert next(watch).status == status.NOT_SERVING
    assert stub(channel).ServerReady(messages.ServerReadyRequest()).ready is False
    assert stub(channel).ModelReady(messages.ModelReadyRequest(name="m")).ready is False
    error = raises(lambda: stub(channel).ModelInfer(infer_request("[MASK]", model_name="m")))
    assert (error.code().name, error.details()) == ("UNAVAILABLE", "Model with name m is not ready.")
    client.post("/v2/repository/models/m/load")
    assert next(watch).status == status.SERVING
    assert stub(channel).ModelInfer(infer_request("[MASK]", model_name="m")).outputs


def test_reflection(channel: grpc.Channel) -> None:
    """As grpcurl does it: knowing nothing but the port."""
    database = ProtoReflectionDescriptorDatabase(channel)
    pool = DescriptorPool(database)
    services = list(database.get_services())
    assert services == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", SERVICE]
    assert all(pool.FindServiceByName(name).methods for name in services)
    method = pool.FindServiceByName(SERVICE).FindMethodByName("ModelInfer")
    request, response = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=request.SerializeToString,
        response_deserializer=response.FromString,
    )
    body = {
        "model_name": "model",
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": ["SGVsbG8="]}}],
    }
    answer = call(json_format.ParseDict(body, request(), descriptor_pool=pool))
    assert (
        answer.outputs[0].contents.int64_contents
        == stub(channel).ModelInfer(infer_request("Hello")).outputs[0].contents.int64_contents
    )


def test_what_is_not_there_is_unimplemented(channel: grpc.Channel) -> None:
    call = channel.unary_unary(f"/{SERVICE}/ModelStatistics")
    assert raises(lambda: call(b"")).code().name == "UNIMPLEMENTED"


def test_tls(served: Served, dial: Dial, certificate: Certificate) -> None:
    plain = dial(served, ssl_certfile=str(certificate.certificate), ssl_keyfile=str(certificate.key))
    assert raises(lambda: stub(plain).ModelInfer(infer_request("a"), timeout=10)).code().name == "UNAVAILABLE"
    target = plain._channel.target().decode().removeprefix("dns:///")
    secure = grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate.authority.read_bytes()))
    assert stub(secure).ModelInfer(infer_request("a"), timeout=10).outputs


def connects(port: int, authority: Path, pair: Any = None) -> bool:
    key, chain = (None, None) if pair is None else (pair.private_key_pem.bytes(), pair.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_channel_credentials(authority.read_bytes(), key, chain)
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        ready = grpc.channel_ready_future(channel)
        with contextlib.suppress(grpc.FutureTimeoutError):
            ready.result(timeout=3)
        return bool(ready.done())


def test_mutual_tls_and_a_changed_certificate(served: Served, dial: Dial, files: Certificate, tmp_path: Path) -> None:
    clients = trustme.CA()
    authorities = tmp_path / "clients.pem"
    clients.cert_pem.write_to_path(authorities)
    pair = clients.issue_cert("client")
    names = {"ssl_certfile": files.certificate, "ssl_keyfile": files.key, "ssl_ca_certs": authorities}
    channel = dial(served, **{name: str(path) for name, path in names.items()})
    port = int(channel._channel.target().decode().rpartition(":")[2])
    assert connects(port, files.authority, pair)
    assert not connects(port, files.authority)
    assert not connects(port, files.authority, trustme.CA().issue_cert("client"))
    new = renew(files, tmp_path)
    wait_until(lambda: connects(port, new, pair))
    assert not connects(port, files.authority, pair)


def test_the_stubs_are_current(tmp_path: Path) -> None:
    """`make stubs` writes what is in the repository."""
    for made in generate(tmp_path):
        assert made.read_text() == (HERE / made.name).read_text(), f"{made.name} is old: run make stubs"
