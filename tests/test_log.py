"""The log of started servers."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.conftest import GeneratorFolder, ModelFolder
from tests.faults import FAULT, break_encoder
from tests.servers import ROOT, ServerProcess
from tests.waiting import wait_until
from tests.wire import infer_request

pytestmark = pytest.mark.slow

SECRET = "zyxwvut"
PREDICT = "/v1/models/model:predict"
INFER = "/v2/models/model/infer"


class Logged(ServerProcess):
    """`python launch.py WORDS`, and its log."""

    def __init__(self, words: list[str], home: Path, environment: dict[str, str] | None = None) -> None:
        super().__init__([sys.executable, "launch.py", "--http_port={port}", *words], home, environment)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Each line is an object of JSON with a time and a level."""
        found = [json.loads(line) for line in self.output.splitlines()]
        assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in found)
        return found

    def access(self, **fields: Any) -> list[dict[str, Any]]:
        lines = [line for line in self.lines if line["logger"] == "access"]
        return [line for line in lines if fields.items() <= line.items()]


@pytest.fixture(scope="module", params=["json", "text"])
def server(request: pytest.FixtureRequest, model_folder: ModelFolder, tmp_path_factory: Any) -> Iterator[Logged]:
    words = [f"--model_dir={model_folder('bert', 'sequence_classification')}", f"--log_format={request.param}"]
    words += [
        "--log_level=debug",
        "--access_log",
        "--enable_latency_logging",
        "--workers=2",
        "--max_text_characters=500",
    ]
    home = tmp_path_factory.mktemp("log")
    started = Logged(words, home, break_encoder(home))
    try:
        started.wait_until("/v2/health/ready", 200)
        wait_until(lambda: started.output.count("model is ready") >= 2, seconds=60)
        send_secrets(started)
        yield started
    finally:
        started.terminate()


def send_secrets(server: ServerProcess) -> None:
    """Send a text on every protocol, in good, wrong, too large, malformed and cancelled requests."""
    texts: list[Any] = [[SECRET], [SECRET * 100], [{"text": SECRET}], [[SECRET, [SECRET]]], SECRET, {SECRET: SECRET}]
    for path, name in ((PREDICT, "instances"), ("/embed", "inputs"), ("/predict", "inputs"), ("/rerank", "texts"),
                       ("/openai/v1/completions", "prompt"), ("/openai/v1/embeddings", "input")):  # fmt: skip
        for content in texts:
            httpx.post(
                server.url + path,
                json={name: content, "model": "model", "query": SECRET},
                headers={"x-request-id": "mine"},
            )
        httpx.post(server.url + path, content=f'{{"{name}": ["{SECRET}"')
        httpx.post(server.url + path, content=f'{{"{name}": ["{SECRET}"], "parameters": {{"top_k": "{SECRET}"}}}}')
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [SECRET]}
    for change in ({}, {"shape": [2]}, {"datatype": "FP32"}, {"data": [[SECRET]]}):
        httpx.post(server.url + INFER, json={"inputs": [{**tensor, **change}]})
    with socket.create_connection(("127.0.0.1", server.port)) as leaving:
        leaving.sendall(f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\ncontent-length: 99\r\n\r\n{SECRET}".encode())
    with socket.create_connection(("127.0.0.1", server.port)) as wrong:
        wrong.sendall(f"{SECRET} {SECRET}\r\n\r\n".encode())
        wrong.recv(1000)
    data = messages.ModelInferRequest(
        model_name="model",
        inputs=[{"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [SECRET.encode()]}}],
    )
    wrong_type = messages.ModelInferRequest(
        model_name="model", parameters={"top_k": messages.InferParameter(string_param=SECRET)}, inputs=data.inputs
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.ModelInfer(data, metadata=[("x-request-id", "called")])
        with pytest.raises(grpc.RpcError):
            stub.ModelInfer(wrong_type)
        assert len([*stub.ModelStreamInfer(iter([data, wrong_type, data]))]) == 3
        stub.ModelInfer.future(data).cancel()
        raw = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError):
            raw(SECRET.encode())


def test_no_text_is_in_the_log(server: Logged) -> None:
    wait_until(lambda: "called" in server.output, seconds=10)
    assert SECRET not in server.output


def test_access_lines(server: Logged) -> None:
    wait_until(lambda: "called" in server.output, seconds=10)
    if server.output.startswith("{"):
        [call] = server.access(request_id="called")
        assert call.items() >= {"protocol": "grpc", "method": "gRPC", "status": "OK", "texts": 1}.items()
        assert {"read_ms", "queue_ms", "compute_ms", "render_ms", "milliseconds"} <= call.keys()
        assert {line["worker"] for line in server.lines if "is ready" in line["message"]} == {1, 2}
        wait_until(
            lambda: len(server.access(route="/inference.GRPCInferenceService/ModelStreamInfer")) == 3, seconds=10
        )
    else:
        assert re.search(
            r"protocol=grpc method=gRPC route=\S+/ModelInfer status=OK .* request_id=called ", server.output
        )
    assert server.output.count("requestId: called") == 1


def test_a_reference_is_in_the_answer_and_in_the_log(server: Logged) -> None:
    """Of a fault of the server, over HTTP and gRPC; the error has a text, which stays out of the log."""
    answer = httpx.post(server.url + PREDICT, json={"instances": [f"{SECRET} {FAULT}"]})
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        with pytest.raises(grpc.RpcError) as failed:
            stub.ModelInfer(infer_request(f"{SECRET} {FAULT}"))
    assert (answer.status_code, failed.value.code()) == (500, grpc.StatusCode.INTERNAL)
    for message in (answer.json()["error"], failed.value.details()):
        reference = message.removeprefix("internal server error (reference ").removesuffix(")")
        assert re.fullmatch("[0-9a-f]{8}", reference)
        wait_until(lambda: f"(reference {reference})" in server.output, seconds=10)  # noqa: B023
        [line] = [line for line in server.output.splitlines() if f"(reference {reference})" in line]
        assert "a request failed: RuntimeError" in line
        if line.startswith("{"):
            fields = json.loads(line)
            assert (fields["level"], fields["reference"], fields["exception"]) == ("error", reference, "RuntimeError")
            assert "in fail" in fields["traceback"]
    assert FAULT not in server.output


def test_a_level_of_the_log(model_folder: ModelFolder, tmp_path: Path) -> None:
    words = [f"--model_dir={model_folder('bert', 'sequence_classification')}", "--log_level=warning"]
    server = Logged([*words, "--max_length=8"], tmp_path, break_encoder(tmp_path))
    try:
        server.wait_until("/v2/health/ready", 200)
        assert httpx.post(server.url + PREDICT, json={"instances": ["word " * 20]}).status_code == 200
        assert httpx.post(server.url + PREDICT, json={"instances": [FAULT]}).status_code == 500
    finally:
        assert server.terminate() == 0
    assert {*re.findall(r"^\S+ \[([A-Z]+)\]", server.output, re.MULTILINE)} == {"WARNING", "ERROR"}


OPTIONS = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
MESSAGES = [{"role": "user", "content": SECRET}]
# Calls that a generator answers, by the id of their requests.
GENERATED: dict[str, tuple[str, dict[str, Any]]] = {
    "v1": (PREDICT, {"instances": [SECRET], "parameters": OPTIONS}),
    "v2": ("/v2/models/model/generate", {"text_input": SECRET, "parameters": OPTIONS}),
    "v2-stream": ("/v2/models/model/generate_stream", {"text_input": SECRET, "parameters": OPTIONS}),
    "completion": ("/v1/completions", {"prompt": SECRET, "return_token_ids": True, **OPTIONS}),
    "completion-stream": ("/v1/completions", {"prompt": SECRET, "stream": True, **OPTIONS}),
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, **OPTIONS}),
    "chat-stream": ("/v1/chat/completions", {"messages": MESSAGES, "stream": True, **OPTIONS}),
}
WRONG: list[dict[str, Any]] = [
    {"temperature": SECRET}, {"parameters": {"temperature": SECRET}}, {"stop": [[SECRET]]}, {"guided_regex": f"({SECRET}"},
    {"prompt": {SECRET: 1}}, {"messages": SECRET}, {"instances": [{SECRET: SECRET}]}, {"text_input": [SECRET]},
]  # fmt: skip


def find_texts(value: Any) -> Iterator[str]:
    """The texts of outputs in an answer."""
    match value:
        case dict():
            for name, item in value.items():
                if isinstance(item, str) and name in ("text", "content", "text_output"):
                    yield item
                elif name == "predictions":
                    yield from item
                elif name == "token_ids" and item:
                    yield ",".join(map(str, item))
                else:
                    yield from find_texts(item)
        case list():
            for item in value:
                yield from find_texts(item)


@pytest.fixture(scope="module")
def generated(generator_folder: GeneratorFolder, tmp_path_factory: Any) -> Iterator[tuple[Logged, list[str]]]:
    """A generator on `transformers` that has got secrets, and its outputs."""
    words = [f"--model_dir={generator_folder('llama')}", "--backend=huggingface"]
    words += ["--log_format=json", "--log_level=debug", "--access_log"]
    server = Logged(words, tmp_path_factory.mktemp("log"))
    outputs = []
    try:
        server.wait_until("/v2/health/ready", 200)
        for name, (path, body) in GENERATED.items():
            answer = httpx.post(server.url + path, json=body, headers={"x-request-id": name}, timeout=60)
            assert answer.status_code == 200
            is_stream = name.endswith("stream")
            data = re.findall(r"^data: (\{.*)$", answer.text, re.M) if is_stream else [answer.text]
            parts = [text for each in data for text in find_texts(json.loads(each))]
            outputs += ["".join(parts)] if is_stream else parts
            for wrong in WRONG:
                httpx.post(server.url + path, json=body | wrong)
            httpx.post(server.url + path, content=f'{{"prompt": "{SECRET}')
        many = {"prompt": SECRET, "stream": True, "n": 16, "max_tokens": 50, "ignore_eos": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=many, headers={"x-request-id": "left"}) as left:
            next(left.iter_lines())
        wait_until(lambda: '"left"' in server.output, seconds=10)
        yield server, outputs
    finally:
        server.terminate()


def test_no_text_or_output_of_a_generator_is_in_the_log(generated: tuple[Logged, list[str]]) -> None:
    server, outputs = generated
    assert len(outputs) > len(GENERATED)
    # As JSON has it, too.
    assert not [text for text in outputs if text in server.output or json.dumps(text)[1:-1] in server.output]
    assert SECRET not in server.output


def test_access_lines_of_a_generator(generated: tuple[Logged, list[str]]) -> None:
    server, _ = generated
    for name in GENERATED:
        [line] = server.access(request_id=name)
        assert line.items() >= {"status": "200", "texts": 1, "generation_tokens": 12, "finish": "length"}.items()
        assert line["prompt_tokens"] > 1
        assert 0 < line["first_token_ms"] <= line["milliseconds"]
        assert {"read_ms", "queue_ms", "compute_ms"} <= line.keys()
    [left] = server.access(request_id="left")
    assert left["cancelled"] is True


def test_the_log_of_a_server_that_ends(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("bert", "sequence_classification")
    server = Logged([f"--model_dir={folder}"], tmp_path, {"RUNTIME_ARGS": "--log-format json"})
    try:
        server.wait_until("/v2/health/ready", 200)
        httpx.get(server.url + "/livez")
    finally:
        assert server.terminate() == 0
    assert server.lines
    assert not server.access()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--log_format=json", "--modl_dir=/x"],
            "unknown argument 'modl_dir' in the command line: did you mean model_dir?",
        ),
        (["--log_format", "json", "--dtype=int3"], "argument dtype (from the command line) is 'int3': "),
        (["--log_format=json", "--model_dir=/nowhere", "--workers=2"], "there is no folder /nowhere"),
        (["--log_format=json", "--ssl_certfile=/nowhere", "--ssl_keyfile=/nowhere"], "ssl_certfile is /nowhere"),
    ],
)
def test_a_start_that_fails(words: list[str], message: str, tmp_path: Path) -> None:
    server = Logged(words, tmp_path)
    try:
        assert server.wait_for_exit() == 1
    finally:
        server.terminate()
    [line] = [line for line in server.lines if line["level"] == "critical"]
    assert message in line["message"]
    assert line["logger"] == "server"


def test_inputs_where_the_operator_asks_for_them(
    model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path: Path
) -> None:
    models = tmp_path / "models.yaml"
    models.write_text(
        f"models:\n  - {{name: model, model_dir: {model_folder('bert', 'sequence_classification')}}}\n"
        f"  - {{name: writer, model_dir: {generator_folder('llama')}, backend: huggingface}}\n"
    )
    server = Logged([f"--models_file={models}", "--log_format=json", "--log_inputs=4"], tmp_path)
    chat = [{"role": "user", "content": "abcdef"}]
    sent: list[tuple[str, dict[str, Any], list[str]]] = [
        (PREDICT, {"instances": ["a\nbcdef", *[SECRET] * 9]}, ["a\nbc", *[SECRET[:4]] * 3]),
        ("/v1/models/writer:predict", {"instances": [SECRET]}, [SECRET[:4]]),
        ("/v1/completions", {"model": "writer", "prompt": [SECRET] * 9, "max_tokens": 1}, [SECRET[:4]] * 4),
        ("/v1/completions", {"model": "writer", "prompt": [111, 112], "max_tokens": 1}, ["111 "]),
        ("/v1/chat/completions", {"model": "writer", "messages": chat, "max_tokens": 1}, ["abcd"]),
    ]
    try:
        server.wait_until("/v2/health/ready", 200)
        for number, (path, body, _) in enumerate(sent):
            httpx.post(server.url + path, json=body, headers={"x-request-id": str(number)}, timeout=60)
        wait_until(lambda: server.output.count("inputs of") >= len(sent), seconds=10)
    finally:
        server.terminate()
    told = {line["request_id"]: line["inputs"] for line in server.lines if "inputs" in line}
    assert told == {str(number): inputs for number, (_, _, inputs) in enumerate(sent)}
    assert SECRET not in server.output


def test_inputs_over_every_protocol(model_folder: ModelFolder, tmp_path: Path) -> None:
    words = [f"--model_dir={model_folder('bert', 'text_embedding')}", "--log_format=json", "--log_inputs=4"]
    server = Logged(words, tmp_path)
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one text", SECRET]}
    sent: dict[str, dict[str, Any]] = {
        INFER: {"inputs": [tensor]},
        "/v1/embeddings": {"model": "model", "input": ["one text", SECRET]},
        "/embed": {"inputs": ["one text", SECRET]},
    }
    try:
        server.wait_until("/v2/health/ready", 200)
        for path, body in sent.items():
            assert httpx.post(server.url + path, json=body, headers={"x-request-id": path}).status_code == 200
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
            stub.ModelInfer(infer_request(SECRET), metadata=[("x-request-id", "call")])
            list(stub.ModelStreamInfer(iter([infer_request("one"), infer_request(SECRET)])))
        wait_until(lambda: server.output.count("inputs of") == len(sent) + 3, seconds=10)
    finally:
        server.terminate()
    told = [(line.get("request_id"), line["inputs"]) for line in server.lines if "inputs" in line]
    expected = [(path, ["one ", SECRET[:4]]) for path in sent]
    assert told == [*expected, ("call", [SECRET[:4]]), (None, ["one"]), (None, [SECRET[:4]])]
    assert SECRET not in server.output


def test_what_libraries_print(tmp_path: Path) -> None:
    """Python's warnings, prints, native output and uncaught errors of a process that serves, and of its children."""
    program = """
import logging, os, subprocess, sys, threading, warnings
from bentoml import server_context
from runners.core.log_settings import LogSettings
from runners.hosting.logs import server_log
server_log.configure(LogSettings(is_json=True), serves=True)
print("printed")
warnings.warn("warned")
os.write(2, b"native\\n")
subprocess.run(["echo", "child"])
logging.getLogger("circus").warning("of %s", "circus")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
os.write(1, b"https://me:hush@host without a line break")
raise RuntimeError("wrong")
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (1, "")
    told = {(line["logger"], line["message"].partition("\n")[0].rpartition(": ")[2]) for line in lines}
    assert told >= {
        ("output", "printed"), ("output", "native"), ("output", "child"), ("circus", "of circus"),
        ("output", "https://host without a line break"),
        ("py.warnings", "warned"), ("runners.hosting.logs", "ZeroDivisionError"), ("runners.hosting.logs", "uncaught error"),
    }  # fmt: skip
