"""Servers that are started as each cloud starts containers: its command, variables, folders, probes and calls."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
import yaml
from botocore.exceptions import ClientError

from tests.conftest import ModelFolder
from tests.restricted import needs_root
from tests.servers import BENTOML, ROOT, ServerProcess, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TEXT = "I love Munich"
# In a name space of its own: the folder is at a cloud's place for models.
_MOUNT = 'mount --bind "$0" "$1" && shift && exec "$@"'


@contextmanager
def start(
    words: Sequence[str], home: Path, variables: Mapping[str, str], port: int, ready: str
) -> Iterator[ServerProcess]:
    """launch.py with the words and variables, once it is ready.

    Args:
        ready: the path that the cloud probes.
    """
    environment = {"RUNTIME_GRPC_PORT": "", **variables}
    server = ServerProcess(words, home, environment, port=port)
    try:
        server.wait_until(ready, 200)
        yield server
    finally:
        assert server.terminate() == 0


@pytest.fixture
def sagemaker_folder() -> Iterator[Path]:
    """The folder of SageMaker, which is empty but in the name space of a test."""
    folder = Path("/opt/ml/model")
    made = [each for each in (folder, folder.parent) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
    for each in made:
        each.rmdir()


def invoke_directly(request: Any, **_: Any) -> None:
    """SageMaker itself passes a call of an endpoint on to the container's only path."""
    request.url = re.sub(r"/endpoints/[^/]+/invocations$", "/invocations", request.url)


@needs_root
def test_sagemaker(model_folder: ModelFolder, tmp_path: Path, sagemaker_folder: Path) -> None:
    """`docker run IMAGE serve` with a model at /opt/ml/model, as one of several containers, and boto3's client."""
    folder = model_folder("bert", "sequence_classification")
    command = [sys.executable, str(ROOT / "launch.py"), "serve"]
    inside = ["unshare", "--mount", "sh", "-c", _MOUNT, str(folder), str(sagemaker_folder), *command]
    port, grpc_port = free_port(), free_port()
    variables = {"SAGEMAKER_BIND_TO_PORT": str(port), "SAGEMAKER_SAFE_PORT_RANGE": f"{grpc_port}-65535"}
    with start(inside, tmp_path, variables, port, "/ping") as server:
        assert f"gRPC listens on port {grpc_port}" in server.output
        client = boto3.client(
            "sagemaker-runtime", "eu-west-1", endpoint_url=server.url, aws_access_key_id="x", aws_secret_access_key="x"
        )
        client.meta.events.register("before-send.sagemaker-runtime.InvokeEndpoint", invoke_directly)

        def invoke(body: str, media_type: str = "application/json") -> Any:
            answer = client.invoke_endpoint(
                EndpointName="bert", Body=body, ContentType=media_type, Accept="application/json", CustomAttributes="c1"
            )
            assert answer["ContentType"] == "application/json"
            return json.loads(answer["Body"].read())

        [best] = invoke(json.dumps({"inputs": TEXT}))
        assert {*best} == {"label", "score"}
        assert invoke(TEXT, "text/plain") == [best]
        assert invoke(json.dumps({"input": TEXT}))["data"][0]["label"] == best["label"]
        with pytest.raises(ClientError) as refused:
            invoke("a,b", "text/csv")
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 415


def test_vertex(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The variables of a model that is deployed to an endpoint; its artifact's URI is a folder here."""
    folder, port = model_folder("bert", "sequence_classification"), free_port()
    health = "/v1/endpoints/1/deployedModels/2"
    variables = {
        "AIP_MODE": "PREDICTION", "AIP_HTTP_PORT": str(port), "AIP_STORAGE_URI": f"file://{folder}", "RUNTIME_API_KEY": "k",
        "AIP_HEALTH_ROUTE": health, "AIP_PREDICT_ROUTE": f"{health}:predict", "RUNTIME_GRPC_PORT": str(free_port()),
    }  # fmt: skip
    words = [sys.executable, str(ROOT / "launch.py"), "--access_log"]
    with start(words, tmp_path, variables, port, health) as server:
        path, key = f"{server.url}{health}:predict", {"authorization": "Bearer k"}
        assert httpx.post(path, json={"instances": [TEXT]}).status_code == 401
        answer = httpx.post(path, json={"instances": [TEXT, "x"]}, headers=key)
        assert answer.status_code == 200, answer.text
        assert [{*best} for [best] in answer.json()["predictions"]] == [{"label", "score"}] * 2
        raw = httpx.post(path, json={"input": TEXT}, headers=key)
        assert raw.json()["data"][0]["label"] == answer.json()["predictions"][0][0]["label"]
        document = httpx.get(f"{server.url}/openapi.json").json()
        assert {health, f"{health}:predict"} <= {*document["paths"]}
        # A probe has no line.
        wait_until(lambda: f"{health}:predict" in server.output, seconds=10)
        assert f"{health}," not in server.output.replace(f"{health}:predict", "")


@pytest.mark.parametrize("variable", ["AIP_HTTP_PORT", "AIP_HEALTH_ROUTE", "AIP_PREDICT_ROUTE"])
def test_wrong_variables_of_vertex(variable: str, tmp_path: Path) -> None:
    server = ServerProcess([sys.executable, str(ROOT / "launch.py")], tmp_path, {variable: "x"})
    assert server.wait_for_exit() == 1
    assert re.fullmatch(rf"error: .*{variable}.* is 'x': .*\n", server.output), server.output


def test_azure(model_folder: ModelFolder, tmp_path: Path) -> None:
    """The registered folder of a model below the version's, and the routes of deploy/azure."""
    version = tmp_path / "azureml-models" / "bert" / "1"
    version.mkdir(parents=True)
    (version / "bert").symlink_to(model_folder("bert", "sequence_classification"))
    routes = yaml.safe_load((ROOT / "deploy/azure/deployment.yaml").read_text())["environment"]["inference_config"]
    variables = {"AZUREML_MODEL_DIR": str(version), "RUNTIME_GRPC_PORT": str(free_port())}
    port = free_port()
    words = [*BENTOML, "serve", ".", f"--port={port}"]
    with start(words, tmp_path, variables, port, routes["readiness_route"]["path"]) as server:
        assert httpx.get(f"{server.url}{routes['liveness_route']['path']}").status_code == 200
        answer = httpx.post(f"{server.url}{routes['scoring_route']['path']}", json={"inputs": TEXT})
        assert [{*each} for each in answer.json()] == [{"label", "score"}]
