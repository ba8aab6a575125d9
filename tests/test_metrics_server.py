"""Black box: what /metrics of started servers says, over all protocols, with several workers and several servers."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import BENTOML, ServerProcess
from tests.waiting import wait_until
from tests.wire import infer_request

pytestmark = pytest.mark.slow

INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
V1, V2 = "/v1/models/model:predict", "/v2/models/model/infer"
PHASES = ("read", "queue", "compute", "render")
TENSOR = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": ["good", "bad film"]}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def start(home: Path, folder: Path, *arguments: str) -> ServerProcess:
    """A server; all servers of a home share BENTOML_HOME."""
    words = [word for argument in (f"model_dir={folder}", *arguments) for word in ("--arg", argument)]
    environment = {"TMPDIR": str(home), "BENTOML_HOME": str(home / "bentoml"), "HF_HUB_OFFLINE": "1"}
    return ServerProcess([*BENTOML, "serve", ".", "--port={port}", *words], home, environment)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def servers(
    home: Path, model_folder: ModelFolder, generator_folder: GeneratorFolder
) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """An encoder with two workers and padded batches, and a generator that started later with the same BENTOML_HOME."""
    # DeBERTa with a convolution is not packed.
    folder = model_folder("deberta-v2", "text_embedding", conv_kernel_size=3)
    encoder = start(home, folder, "workers=2", "max_client_batch_size=8")
    generator = None
    try:
        encoder.wait_until("/v2/health/ready", 200)
        generator = start(home, generator_folder("gpt2"), "backend=huggingface", "task=text_generation")
        generator.wait_until("/v2/health/ready", 200)
        yield encoder, generator
    finally:
        encoder.terminate()
        if generator is not None:
            generator.terminate()


def scrape(server: ServerProcess) -> Samples:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the series of a metric that have these labels."""
    wanted = {*labels.items()}
    return sum(number for (each, pairs), number in samples.items() if each == name and wanted <= pairs)


def wait_for(server: ServerProcess, is_there: Callable[[Samples], bool]) -> Samples:
    """The samples, once they are as expected: another worker writes its own once a second."""
    samples: Samples = {}

    def is_complete() -> bool:
        nonlocal samples
        samples = scrape(server)
        return is_there(samples)

    wait_until(is_complete)
    return samples


ANSWERED = [
    ("kserve_v1", "/v1/models/{name}:predict", V1, {"instances": ["good", "bad film"]}),
    ("open_inference", "/v2/models/{name}/infer", V2, {"inputs": [TENSOR]}),
    ("openai", "/v1/embeddings", "/v1/embeddings", {"input": ["good", "bad film"]}),
    ("tei", "/embed", "/embed", {"inputs": ["good", "bad film"]}),
    ("huggingface", "/", "/", {"inputs": ["good", "bad film"]}),
]


def test_requests_over_every_protocol(servers: tuple[ServerProcess, ServerProcess]) -> None:
    server, _ = servers
    before = scrape(server)
    for _, _, path, body in ANSWERED:
        for _ in range(5):
            # A connection each, so that both workers answer.
            assert httpx.post(server.url + path, json=body).status_code == 200
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        data = infer_request("good", "bad film").SerializeToString()
        for _ in range(5):
            channel.unary_unary(INFER)(data)
        assert len(list(channel.stream_stream(STREAM)(iter([data] * 5)))) == 5
    expected = [(protocol, route, "200") for protocol, route, _, _ in ANSWERED]
    expected += [("grpc", INFER, "OK"), ("grpc", STREAM, "OK")]

    def is_counted(samples: Samples) -> bool:
        return (
            all(
                value(
                    samples, "runtime_requests_total", protocol=protocol, route=route, status=status, model_name="model"
                )
                == value(samples, "runtime_request_seconds_count", protocol=protocol, route=route, model_name="model")
                >= 5
                for protocol, route, status in expected
            )
            and value(samples, "runtime_texts_total") - value(before, "runtime_texts_total") == 70
        )

    samples = wait_for(server, is_counted)

    def grown(name: str) -> float:
        return value(samples, name, model_name="model") - value(before, name, model_name="model")

    for phase in PHASES:
        assert grown(f"runtime_{phase}_seconds_count") == 35
        assert grown(f"runtime_{phase}_seconds_sum") > 0
    for kserve, phase in (("preprocess", "read"), ("postprocess", "render")):
        assert grown(f"request_{kserve}_seconds_sum") == grown(f"runtime_{phase}_seconds_sum")
    assert grown("request_predict_seconds_count") == 35
    assert value(samples, "request_explain_seconds_count", model_name="model") == 0
    assert 0 < grown("runtime_batch_texts_count") <= 35
    assert grown("runtime_batch_texts_sum") == 70
    assert grown("runtime_padding_tokens_total") == 70, "2 tokens beside each 'good', up to 'bad film'"
    assert grown("runtime_tokens_total") == grown("runtime_batch_tokens_sum") == grown("runtime_batched_tokens_total")


def test_refusals(servers: tuple[ServerProcess, ServerProcess]) -> None:
    server, _ = servers
    httpx.post(server.url + V1, content=b"{")
    httpx.post(server.url + V1, json={"instances": ["a"] * 9})
    httpx.post(f"{server.url}/v1/models/secret-name:predict", json={})
    httpx.get(f"{server.url}/secret/path")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"secret nonsense\r\n\r\n")
        assert b"400 Bad Request" in connection.recv(1000)
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/secret.Service/Method")(b"")
    expected = [
        {"protocol": "kserve_v1", "model_name": "model", "reason": "input"},
        {"protocol": "kserve_v1", "model_name": "model", "reason": "limit"},
        {"protocol": "kserve_v1", "model_name": "", "reason": "not_found"},
        {"protocol": "server", "model_name": "", "reason": "not_found"},
        {"protocol": "server", "model_name": "", "reason": "input"},
        {"protocol": "grpc", "model_name": "", "reason": "not_implemented"},
    ]
    samples = wait_for(
        server, lambda samples: all(value(samples, "runtime_refusals_total", **labels) == 1 for labels in expected)
    )
    assert value(samples, "runtime_requests_total", route="unknown", status="400") == 1
    assert "secret" not in str(samples), "labels are never texts of clients"


def test_generation_and_a_client_that_leaves(servers: tuple[ServerProcess, ServerProcess]) -> None:
    _, server = servers
    body: dict[str, Any] = {"prompt": "one", "max_tokens": 6, "ignore_eos": True}
    assert httpx.post(f"{server.url}/v1/completions", json=body).status_code == 200
    with httpx.stream("POST", f"{server.url}/v1/completions", json={**body, "stream": True}) as stream:
        assert stream.read().endswith(b"[DONE]\n\n")
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json={**body, "stream": True, "max_tokens": 60, "n": 16}
    ) as stream:
        next(stream.iter_lines())
    samples = wait_for(
        server, lambda samples: value(samples, "runtime_cancelled_requests_total", protocol="openai") == 1
    )
    # 16 outputs of the client that has left.
    assert value(samples, "vllm:request_success_total", finished_reason="length") >= 2
    assert value(samples, "vllm:request_success_total") == 18
    assert value(samples, "vllm:time_to_first_token_seconds_count") >= 2
    assert value(samples, "vllm:inter_token_latency_seconds_count") >= 10
    assert value(samples, "vllm:request_time_per_output_token_seconds_count") >= 2
    assert value(samples, "vllm:e2e_request_latency_seconds_count") >= 2
    assert value(samples, "vllm:generation_tokens_total") >= 12
    assert value(samples, "vllm:prompt_tokens_total") > 0
    wait_for(server, lambda samples: value(samples, "vllm:num_requests_running") == 0)
    assert value(samples, "runtime_requests_total", route="/v1/completions", status="200") == 3
    assert value(samples, "runtime_batched_tokens_total") == value(samples, "runtime_batch_tokens_sum") > 10
    assert value(samples, "runtime_render_seconds_count", model_name="model") == 1, "streams are left out"


def test_a_queue(servers: tuple[ServerProcess, ServerProcess]) -> None:
    """Of 256 outputs, those that have no row of the generator's batch wait with the tokens of their truncated prompts."""
    _, server = servers
    prompts = {"prompt": [[9, 10, 11, 12]] * 16, "truncate_prompt_tokens": 3}
    body = {**prompts, "n": 16, "max_tokens": 50, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60)
        # The outputs begin to wait, and then the first of them run.
        samples = wait_for(
            server,
            lambda samples: (
                0 < value(samples, "runtime_waiting_texts") < 256 and value(samples, "runtime_running_texts") > 0
            ),
        )
        assert asked.result().status_code == 200
    assert value(samples, "runtime_waiting_tokens") % 3 == 0
    assert 0 < value(samples, "runtime_waiting_tokens") <= 3 * 256
    assert 0 < value(samples, "runtime_running_texts") <= 64
    wait_for(server, lambda samples: value(samples, "runtime_waiting_tokens") == 0)
    assert value(scrape(server), "runtime_truncated_texts_total") == 16


def test_calls_that_clients_leave(servers: tuple[ServerProcess, ServerProcess]) -> None:
    """A call that is cancelled, one whose deadline is over, and a stream that is cancelled after its first answer."""
    _, server = servers
    request = infer_request("one")
    request.parameters["max_tokens"].int64_param = 60
    request.parameters["ignore_eos"].bool_param = True
    unsent: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def wait_for_message() -> Iterator[bytes]:
        yield unsent.get()

    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        call = channel.stream_unary(INFER).future(wait_for_message())
        wait_for(server, lambda samples: value(samples, "runtime_requests_in_progress", protocol="grpc") == 1)
        call.cancel()
        with pytest.raises(grpc.RpcError) as failed:
            channel.stream_unary(INFER)(wait_for_message(), timeout=0.3)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        stream = channel.stream_stream(STREAM)(iter([request.SerializeToString()] * 40))
        next(stream)
        stream.cancel()
        # The threads that wait for messages end.
        unsent.put(b"")
        unsent.put(b"")
        samples = wait_for(
            server,
            lambda samples: (
                value(samples, "runtime_requests_total", route=INFER, status="CANCELLED") == 2
                and value(samples, "runtime_requests_total", route=STREAM, status="CANCELLED") > 0
                and value(samples, "runtime_requests_in_progress", protocol="grpc") == 0
            ),
        )
    cancelled = value(samples, "runtime_requests_total", protocol="grpc", status="CANCELLED")
    assert value(samples, "runtime_cancelled_requests_total", protocol="grpc") == cancelled
    assert value(samples, "runtime_cancelled_requests_total", protocol="grpc", model_name="model") == cancelled - 2
    assert value(samples, "runtime_refusals_total", protocol="grpc") == 0


def test_models_and_process(servers: tuple[ServerProcess, ServerProcess]) -> None:
    for server, engine, task in zip(servers, ("encoder", "transformers"), ("embedding", "generation"), strict=True):
        samples = scrape(server)
        assert value(samples, "runtime_server_ready") == 1
        assert value(samples, "runtime_model_ready", model_name="model", version="1") == 1
        assert 0 < value(samples, "runtime_model_load_seconds", model_name="model", version="1") < 300
        [info] = [dict(labels) for name, labels in samples if name == "runtime_model_info"]
        assert (info["engine"], info["dtype"], info["device"]) == (engine, "float32", "cpu")
        assert info["task"] == f"text_{task}"
        assert info["batching"]
        assert info["linear_kernels"]
        [process] = [dict(labels) for name, labels in samples if name == "runtime_process_info"]
        assert all(process.values())
        assert value(samples, "runtime_requests_in_progress", protocol="server") >= 1, "the scrape itself"
        for gauge in ("runtime_waiting_texts", "runtime_waiting_tokens", "runtime_running_texts"):
            assert value(samples, gauge, model_name="model") == 0


def test_openmetrics_by_accept(servers: tuple[ServerProcess, ServerProcess]) -> None:
    server, _ = servers
    answer = httpx.get(f"{server.url}/metrics", headers={"accept": "application/openmetrics-text;version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    families = {family.name: family.type for family in parse_openmetrics(answer.text)}  # type: ignore[no-untyped-call]
    assert families["runtime_requests"] == "counter"
    assert families["runtime_request_seconds"] == "histogram"
    assert httpx.get(f"{server.url}/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_each_server_has_a_folder_of_its_own(servers: tuple[ServerProcess, ServerProcess], home: Path) -> None:
    folders = [find_folders(server) for server in servers]
    assert [len(each) for each in folders] == [1, 1]
    assert len(set.union(*folders)) == 2
    assert {folder.parent for folder in set.union(*folders)} == {home}


def find_folders(server: ServerProcess) -> set[Path]:
    """The folders to which the workers write metrics, by the files that they have mapped."""
    found = set()
    for child in psutil.Process(server.pid).children(recursive=True):
        maps = Path(f"/proc/{child.pid}/maps").read_text()
        found |= {Path(folder) for folder in re.findall(r" (/\S+)/histogram_\d+\.db", maps)}
    return found


def test_a_folder_goes_with_its_server(home: Path, model_folder: ModelFolder) -> None:
    """After SIGTERM at once, after SIGKILL when the next server starts."""

    def folders() -> set[Path]:
        return {*home.glob("huggingface-runtime-metrics-*")}

    others = folders()
    folder = model_folder("bert", "text_embedding")
    killed = start(home, folder)
    killed.wait_until("/v2/health/ready", 200)
    [left] = folders() - others
    workers = psutil.Process(killed.pid).children(recursive=True)
    os.kill(killed.pid, signal.SIGKILL)
    for worker in workers:
        worker.kill()
    killed.wait_for_exit()
    assert left.exists()
    server = start(home, folder)
    server.wait_until("/v2/health/ready", 200)
    assert not left.exists()
    assert len(folders() - others) == 1
    server.terminate()
    assert folders() == others


def test_a_killed_worker_leaves_its_counts_and_no_files(home: Path, model_folder: ModelFolder) -> None:
    server = start(home, model_folder("bert", "text_embedding"), "workers=2")
    try:
        server.wait_until("/v2/health/ready", 200)
        for _ in range(20):
            httpx.post(server.url + V1, json={"instances": ["a"]})
        wait_for(server, lambda samples: value(samples, "runtime_texts_total") == 20)
        [folder] = find_folders(server)
        [worker, _] = [
            child
            for child in psutil.Process(server.pid).children(recursive=True)
            if "worker.service" in " ".join(child.cmdline())
        ]
        worker.kill()
        wait_until(lambda: (folder / "counter_ended.db").exists(), 60)
        wait_until(lambda: not list(folder.glob(f"*_{worker.pid}.db")))
        samples = wait_for(server, lambda samples: value(samples, "runtime_server_ready") == 1)
        assert value(samples, "runtime_texts_total") == 20
        assert value(samples, "runtime_read_seconds_count", model_name="model") == 20
    finally:
        server.terminate()
