"""Real clients that nobody here wrote, against a started server that has a model of every task."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.http
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.clients import grpcurl
from tests.conftest import GeneratorFolder, ModelFolder
from tests.families import MINILM
from tests.servers import MLSERVER, ROOT, ServerProcess, serve_models

pytestmark = pytest.mark.slow

TEXTS = ["The capital of France is [MASK].", "Serve [MASK] models"]
TASKS = ["fill_mask", "sequence_classification", "text_embedding", "text_generation", "token_classification"]


@dataclass(frozen=True)
class ServedTask:
    """A server, and what V1 says of the texts.

    Attributes:
        outputs: `output-0` of each text over the Open Inference Protocol, by V1's predictions.
        parameters: what makes a generator's answer the same each time.
    """

    task: str
    server: ServerProcess
    outputs: list[Any]
    parameters: dict[str, Any]

    def check(self, found: Any) -> None:
        """Compare `output-0`, in whatever form a client has it."""
        rows = found.tolist() if isinstance(found, np.ndarray) else found
        rows = [row.decode() if isinstance(row, bytes) else row for row in rows]
        for row, expected in zip(rows, self.outputs, strict=True):
            if self.task == "token_classification":
                # [1, tokens], padded to the longest text.
                assert row[0][: len(expected[0])] == expected[0]
            else:
                assert row == (pytest.approx(expected, abs=1e-6) if self.task == "text_embedding" else expected)


@pytest.fixture(scope="module")
def server(
    model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One server of all tasks, whose names are the models' names."""
    special = {"text_embedding": MINILM, "text_generation": generator_folder("llama")}
    models = {
        task: {"model_dir": special.get(task) or model_folder("bert", task), "backend": "huggingface"} for task in TASKS
    }
    with serve_models(tmp_path_factory.mktemp("clients"), models, enable_repository=True) as server:
        yield server


@pytest.fixture(scope="module", params=TASKS)
def served(request: Any, server: ServerProcess) -> ServedTask:
    task: str = request.param
    parameters = {"temperature": 0, "max_tokens": 5} if task == "text_generation" else {}
    body = {"instances": TEXTS, "parameters": parameters}
    answer = httpx.post(f"{server.url}/v1/models/{task}:predict", json=body, timeout=30).json()
    return ServedTask(task, server, answer["predictions"], parameters)


def test_curl(served: ServedTask) -> None:
    tensor = {"name": "x", "shape": [2], "datatype": "BYTES", "data": TEXTS}
    body = json.dumps({"inputs": [tensor], "parameters": served.parameters})
    url = f"{served.server.url}/v2/models/{served.task}/infer"
    printed = subprocess.run(["curl", "-sf", url, "-d", body], capture_output=True, check=True).stdout
    [output] = json.loads(printed)["outputs"]
    served.check(np.array(output["data"]).reshape(output["shape"]))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_triton_over_http(served: ServedTask, binary: bool, compression: str | None) -> None:
    client = tritonclient.http.InferenceServerClient(f"localhost:{served.server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(served.task, "1")
    assert client.get_model_metadata(served.task)["outputs"][0]["name"] == "output-0"
    assert client.get_model_repository_index() == [
        {"name": task, "version": "1", "state": "READY", "reason": ""} for task in TASKS
    ]
    tensor = tritonclient.http.InferInput("input-0", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in TEXTS], dtype=object), binary_data=binary)
    result = client.infer(
        served.task, [tensor], request_id="7", parameters=served.parameters or None,
        outputs=[tritonclient.http.InferRequestedOutput("output-0", binary_data=binary)],
        request_compression_algorithm=compression, response_compression_algorithm=compression,
    )  # fmt: skip
    assert result.get_response()["id"] == "7"
    served.check(result.as_numpy("output-0"))
    client.close()


def test_triton_unloads_and_loads_over_http(served: ServedTask) -> None:
    client = tritonclient.http.InferenceServerClient(f"localhost:{served.server.port}", network_timeout=60)
    client.unload_model(served.task)
    assert not client.is_model_ready(served.task)
    assert client.is_server_ready(), "a model that was unloaded is not to be loaded"
    client.load_model(served.task)
    assert client.is_model_ready(served.task)
    client.close()


def test_triton_over_grpc(served: ServedTask) -> None:
    words = [served.task, json.dumps(TEXTS), json.dumps(served.parameters)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.clients.triton_grpc", f"localhost:{served.server.grpc_port}", *words],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["live"], found["ready"], found["model"], found["id"]) == (True, True, True, "7")
    assert found["index"] == {"models": [{"name": task, "version": "1", "state": "READY"} for task in TASKS]}
    for name in ("plain", "gzip", "timed", "async"):
        served.check(found[name])
    stream = found["stream"]
    unknown = f"Model with name nope does not exist. This server has {', '.join(TASKS)}."
    assert stream["errors"] == [unknown]
    assert stream["finals"] == ["0", "1"]
    for position, expected in enumerate(served.outputs):
        parts = stream["parts"][str(position)]
        if served.task == "text_generation":
            assert "".join(part[0] for part in parts) == expected
        else:
            assert len(parts) == 1
    assert found["error"] == ["StatusCode.NOT_FOUND", unknown]
    assert (found["unloaded"], found["loaded"]) == ([False, True], [True, True])
    if "logits" in found:
        best = np.array(found["logits"]).argmax(-1).ravel().tolist()
        assert [int(printed.split(":")[1]) for printed in found["classes"] if printed] == [
            index for index, label in zip(best, found["labels"], strict=True) if label
        ]


async def test_kserve_over_rest(served: ServedTask) -> None:
    answers = []
    for protocol in ("v1", "v2"):
        client = InferenceRESTClient(RESTConfig(protocol=protocol, timeout=30))
        assert await client.is_model_ready(served.server.url, served.task) is True
        if protocol == "v1":
            body: Any = {"instances": TEXTS, "parameters": served.parameters}
        else:
            tensor = InferInput(name="input-0", shape=[2], datatype="BYTES", data=TEXTS)
            body = InferRequest(model_name=served.task, infer_inputs=[tensor], parameters=served.parameters)
        answers.append(await client.infer(served.server.url, body, model_name=served.task))
    assert answers[0]["predictions"] == served.outputs
    served.check(answers[1].outputs[0].as_numpy())


@pytest.mark.parametrize("raw", [False, True])
async def test_kserve_over_grpc(served: ServedTask, raw: bool) -> None:
    async with InferenceGRPCClient(f"localhost:{served.server.grpc_port}") as client:
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True
        assert await client.is_model_ready(served.task) is True
        tensor = InferInput("input-0", [2], "BYTES", None if raw else TEXTS)
        if raw:
            tensor.set_data_from_numpy(np.array(TEXTS, dtype=object))
        request = InferRequest(served.task, [tensor], request_id="7", parameters=served.parameters)
        answer = await client.infer(request)
        assert answer.id == "7"
        served.check(answer.outputs[0].as_numpy())


@pytest.mark.parametrize("options", [[], ["--batch-size", "2"], ["--binary-data"]])
def test_mlservers_infer_command(served: ServedTask, options: list[str], tmp_path: Path) -> None:
    """It drops `parameters`, so that a generator's answers cannot be told beforehand."""
    lines = [
        {"id": str(i), "inputs": [{"name": "input-0", "shape": [1], "datatype": "BYTES", "data": [text]}]}
        for i, text in enumerate(TEXTS)
    ]
    (tmp_path / "in").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [
        "-u",
        f"localhost:{served.server.port}",
        "-m",
        served.task,
        "-i",
        str(tmp_path / "in"),
        "-o",
        str(tmp_path / "out"),
    ]
    subprocess.run([str(MLSERVER), "infer", *words, *options], capture_output=True, text=True, check=True, timeout=60)
    answers = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert not [answer["error"] for answer in answers if "error" in answer]
    answers.sort(key=lambda answer: int(answer["id"]))
    if served.task == "text_generation":
        assert all(isinstance(answer["outputs"][0]["data"][0], str) for answer in answers)
        return
    rows = [np.array(answer["outputs"][0]["data"]) for answer in answers]
    tail = {"token_classification": (1, -1), "text_embedding": (-1,)}.get(served.task, ())
    served.check([row.reshape(tail).tolist() for row in rows])


def test_reflection(served: ServedTask) -> None:
    with grpc.insecure_channel(f"localhost:{served.server.grpc_port}") as channel:
        assert grpcurl.list_services(channel) == [
            "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "inference.GRPCInferenceService",
        ]  # fmt: skip
        assert grpcurl.call(channel, "grpc.health.v1.Health", "Check", {}) == {"status": "SERVING"}
        contents = {"bytes_contents": [base64.b64encode(text.encode()).decode() for text in TEXTS]}
        body = {
            "model_name": served.task,
            "inputs": [{"name": "x", "datatype": "BYTES", "shape": [2], "contents": contents}],
            "parameters": {name: {"int64_param": value} for name, value in served.parameters.items()},
        }
        [output] = grpcurl.call(channel, "inference.GRPCInferenceService", "ModelInfer", body)["outputs"]
        [values] = output["contents"].values()
        if output["datatype"] == "BYTES":
            values = [base64.b64decode(value).decode() for value in values]
        elif output["datatype"] == "INT64":
            values = [int(value) for value in values]
        served.check(np.array(values).reshape([int(size) for size in output["shape"]]))
