"""Black box: a really started `bentoml serve`, a built Bento, real clients."""

from __future__ import annotations

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from sentence_transformers import SentenceTransformer

from tests.families import MINILM
from tests.servers import BENTOML, ServerProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TEXTS = ["Hello world", "Serve Hugging Face models"]
PREDICT = "/v1/models/model:predict"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def minilm(home: Path) -> Iterator[ServerProcess]:
    """`bentoml serve . --arg ...` from source, with the real all-MiniLM-L6-v2."""
    arguments = ["--arg", f"model_dir={MINILM}", "--arg", "enable_latency_logging=true"]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments], home)
    try:
        server.wait_until("/v2/health/live", 200)
        server.wait_until("/v2/health/ready", 200)
        yield server
    finally:
        server.terminate()


@pytest.fixture(scope="module")
def expected() -> Any:
    return SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)


def test_v1(minilm: ServerProcess, expected: Any) -> None:
    response = httpx.post(minilm.url + PREDICT, json={"instances": TEXTS})
    np.testing.assert_allclose(response.json()["predictions"], expected, atol=2e-6)


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient(minilm: ServerProcess, expected: Any, binary: bool) -> None:
    client = tritonclient.http.InferenceServerClient(minilm.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("model")
    assert client.is_model_ready("model", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("model")["outputs"][0]["shape"] == [-1, 384]
    tensor = tritonclient.http.InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object), binary_data=binary)
    outputs = [tritonclient.http.InferRequestedOutput("output-0", binary_data=binary)]
    for asked in (outputs, None):
        result = client.infer("model", [tensor], outputs=asked, request_id="7")
        assert result.get_response()["id"] == "7"
        np.testing.assert_allclose(result.as_numpy("output-0"), expected, atol=2e-6)
    with pytest.raises(tritonclient.http.InferenceServerException, match="Model with name nope does not exist"):
        client.infer("nope", [tensor])
    client.close()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_tritonclient_compresses(minilm: ServerProcess, expected: Any, encoding: str) -> None:
    client = tritonclient.http.InferenceServerClient(minilm.url.removeprefix("http://"))
    tensor = tritonclient.http.InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object))
    result = client.infer(
        "model", [tensor], request_compression_algorithm=encoding, response_compression_algorithm=encoding
    )
    np.testing.assert_allclose(result.as_numpy("output-0"), expected, atol=2e-6)
    client.close()


@pytest.mark.parametrize("convert", [to_binary, to_structured])
def test_cloudevents(minilm: ServerProcess, expected: Any, convert: Any) -> None:
    asked = CloudEvent({"type": "asked", "source": "https://here.example"}, {"instances": TEXTS})
    headers, body = convert(asked)
    response = httpx.post(minilm.url + PREDICT, content=body, headers=headers)
    answer = from_http(response.headers, response.content)
    assert (answer["type"], answer["source"]) == ("io.kserve.inference.response", "io.kserve.inference.model")
    assert answer.data is not None
    np.testing.assert_allclose(answer.data["predictions"], expected, atol=2e-6)


@pytest.mark.parametrize("protocol", ["v1", "v2"])
async def test_kserve_client(minilm: ServerProcess, expected: Any, protocol: str) -> None:
    client = InferenceRESTClient(RESTConfig(protocol=protocol, timeout=30))
    assert await client.is_server_live(minilm.url) is True
    if protocol == "v1":
        assert await client.is_model_ready(minilm.url, "model") is True
        found = (await client.infer(minilm.url, {"instances": TEXTS}, model_name="model"))["predictions"]
    else:
        assert await client.is_server_ready(minilm.url) is True
        tensor = InferInput(name="input-0", shape=[len(TEXTS)], datatype="BYTES", data=TEXTS)
        answer = await client.infer(
            minilm.url, InferRequest(model_name="model", infer_inputs=[tensor]), model_name="model"
        )
        found = answer.outputs[0].as_numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(
    ("path", "status"), [("/livez", 200), ("/readyz", 200), ("/metrics", 200), ("/docs.json", 200), ("/nowhere", 404)]
)
def test_other_paths(minilm: ServerProcess, path: str, status: int) -> None:
    response = httpx.get(minilm.url + path)
    assert response.status_code == status
    if status == 404:
        assert response.json() == {"error": f"there is nothing at {path}; the protocols are under /v1 and /v2"}


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/schema.json", "/metrics", "/v2/health/live"])
def test_manners_of_every_path(minilm: ServerProcess, path: str) -> None:
    """BentoML's own paths too."""
    for method, status in (("GET", 200), ("HEAD", 200), ("OPTIONS", 204)):
        response = httpx.request(method, minilm.url + path, headers={"x-request-id": "7"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "7")
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


def test_options_of_the_server(minilm: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", minilm.port, timeout=10)
    connection.request("OPTIONS", "*")
    response = connection.getresponse()
    assert (response.status, response.getheader("allow")) == (204, "GET, HEAD, OPTIONS, POST")
    connection.close()


def test_one_connection_outlives_every_error(minilm: ServerProcess) -> None:
    """tests/protocol/http/middleware/test_unread_bodies.py has more of them; here BentoML started the server."""
    connection = http.client.HTTPConnection("127.0.0.1", minilm.port, timeout=30)
    connection.connect()
    used = connection.sock
    large = b" " * (40 * 2**20)
    chunks = (large[start : start + 2**16] for start in range(0, len(large), 2**16))
    errors: list[tuple[str, str, Any, dict[str, str], int]] = [
        ("POST", PREDICT, b"{", {}, 400),
        ("POST", PREDICT, b"{}", {"content-encoding": "gzip"}, 400),
        ("POST", PREDICT, gzip.compress(large), {"content-encoding": "gzip"}, 413),
        ("POST", PREDICT, large, {}, 413),
        ("POST", PREDICT, chunks, {}, 413),
        ("POST", "/nowhere", large, {}, 404),
        ("PUT", PREDICT, large, {}, 405),
        ("POST", PREDICT, large, {"content-type": "text/xml"}, 415),
    ]
    for method, path, body, headers, status in errors:
        chunked = not isinstance(body, bytes)
        connection.request(method, path, body, headers, encode_chunked=chunked)
        response = connection.getresponse()
        assert (response.status, list(json.loads(response.read()))) == (status, ["error"])
        connection.request("POST", PREDICT, json.dumps({"instances": ["a"]}))
        response = connection.getresponse()
        assert (response.status, list(json.loads(response.read()))) == (200, ["predictions"])
        assert connection.sock is used
    connection.close()


def test_the_page_of_the_document_has_all_that_it_refers_to(minilm: ServerProcess) -> None:
    page = httpx.get(f"{minilm.url}/docs").text
    found = re.findall(r'(?:href|src|url)[=:] ?"([^"]+)"', page)
    assert len(found) == 4
    for target in found:
        assert httpx.get(f"{minilm.url}/{target}").status_code == 200, target
    assert httpx.get(f"{minilm.url}/static_content/nothing").status_code == 404


def test_a_body_over_the_limit_is_refused_before_it_is_sent(minilm: ServerProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", minilm.port, timeout=10)
    connection.putrequest("POST", PREDICT)
    connection.putheader("content-length", str(40 * 2**20))
    connection.endheaders()
    response = connection.getresponse()
    assert (response.status, json.loads(response.read())) == (
        413, {"error": "the body has 41943040 bytes; at most 33554432 are allowed"}
    )  # fmt: skip
    connection.close()


def test_a_truncated_text_is_counted_in_the_metrics(minilm: ServerProcess) -> None:
    headers = {"x-request-id": "long-1"}
    assert httpx.post(minilm.url + PREDICT, json={"instances": ["word " * 1000]}, headers=headers).status_code == 200
    assert 'runtime_truncated_texts_total{model_name="model"} 1.0' in httpx.get(minilm.url + "/metrics").text
    [line] = [line for line in minilm.output.splitlines() if "further ones are only counted" in line]
    assert line.endswith("(model=model, request_id=long-1)")


def test_the_queue_is_in_the_metrics(minilm: ServerProcess) -> None:
    """While a large request is under way, texts wait and run; after it none do."""
    names = ("runtime_waiting_texts", "runtime_waiting_tokens", "runtime_running_texts")
    seen: dict[str, set[float]] = {name: set() for name in names}

    def scrape() -> None:
        metrics = httpx.get(minilm.url + "/metrics").text
        for name, values in seen.items():
            [value] = re.findall(rf'^{name}{{model_name="model"}} (\S+)$', metrics, re.MULTILINE)
            values.add(float(value))

    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(httpx.post, minilm.url + PREDICT, json={"instances": ["a text " * 40] * 300}, timeout=60)
        while not request.done():
            scrape()
        assert request.result().status_code == 200
    assert all(max(values) > 1 for values in seen.values()), seen
    for values in seen.values():
        values.clear()
    scrape()
    assert list(seen.values()) == [{0}, {0}, {0}]


def test_a_line_for_every_request(minilm: ServerProcess) -> None:
    httpx.post(f"{minilm.url}{PREDICT}?query=1", json={"instances": ["a"]}, headers={"x-request-id": "logged-1"})
    # The line may be written after the client has its answer.
    wait_until(lambda: "requestId: logged-1" in minilm.output)
    [line] = [line for line in minilm.output.splitlines() if "requestId: logged-1" in line]
    assert f"requestId: logged-1, method: POST, path: {PREDICT}, status: 200, milliseconds: " in line
    assert "[INFO]" in line


def test_prompts_and_traces_are_not_logged(minilm: ServerProcess) -> None:
    httpx.post(minilm.url + PREDICT, json={"instances": ["a secret prompt"]})
    httpx.post(minilm.url + PREDICT, content=b'{"instances": ["a secret prompt"')
    assert "secret" not in minilm.output
    assert "Traceback" not in minilm.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--arg modl_dir=/x", "error: unknown argument 'modl_dir' in the command line: did you mean model_dir?"),
        ("--arg dtype=int3", "error: argument dtype (from the command line) is 'int3': Input should be 'auto', "),
        (
            "--arg model_dir=/nowhere",
            "error: cannot serve model: there is no folder /nowhere: set --model_id to a hub ",
        ),
        (
            "--arg ssl_certfile=/nowhere --arg ssl_keyfile=/nowhere",
            "error: ssl_certfile is /nowhere, and there is no such file",
        ),
        ("--arg gpu=1 --arg gpu_type=abacus", "error: argument gpu_type is 'abacus'; BentoML knows nvidia-"),
    ],
)
def test_what_cannot_start_says_why_and_exits(arguments: str, message: str, home: Path) -> None:
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments.split()], home)
    try:
        assert server.wait_for_exit() == 1
        assert server.output.count(message) == 1
        assert "Traceback" not in server.output
    finally:
        server.terminate()


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch can use a GPU of this machine")
def test_a_gpu_that_cannot_be_used_ends_the_start(home: Path) -> None:
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", f"--arg=model_dir={MINILM}", "--arg=gpu=1"], home)
    try:
        assert server.wait_for_exit() == 1
        assert server.output.count("error: cannot serve model: gpu is 1, but PyTorch can use none: ") == 1
        assert "Traceback" not in server.output
    finally:
        server.terminate()


@pytest.mark.parametrize(
    ("own", "seen"),
    [
        ({}, {"SAFETENSORS_FAST_GPU": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}),
        ({"SAFETENSORS_FAST_GPU": "0"}, {"SAFETENSORS_FAST_GPU": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}),
    ],
)
def test_the_environment_of_a_worker_from_source(own: dict[str, str], seen: dict[str, str], home: Path) -> None:
    """Where the operator says nothing the server's defaults hold; tests/test_bento.py has the same of a Bento."""
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", f"--arg=model_dir={MINILM}"], home, own)
    try:
        server.wait_until("/readyz", 200)
        [worker] = server.worker_environments()
        assert seen.items() <= worker.items()
    finally:
        server.terminate()
