"""A server in front of a real Triton answers as a server that has the model itself; `make test-triton` installs one."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load_file
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve
from tests.servers import ROOT, free_port

PYTHON = ROOT / ".venv-triton" / "bin" / "python"
TEXTS = ["É", "Hello, my dog is cute", "word " * 700, *(f"text {'word ' * number}" for number in range(30))]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.triton,
    pytest.mark.skipif(not PYTHON.exists(), reason="no Triton is installed here: make test-triton does"),
]


@dataclass(frozen=True)
class RunningTriton:
    """Its ports, and the models that it has."""

    hosts: dict[str, str]
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def triton(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    home = tmp_path_factory.mktemp("triton")
    folders = {
        "classifier": model_folder("bert", "sequence_classification"),
        "encoder": model_folder("bert", "text_embedding"),
    }
    weights = []
    for name, folder in folders.items():
        weights.append(home / f"{name}.npz")
        tensors: dict[str, Any] = load_file(folder / "model.safetensors")
        np.savez(weights[-1], **tensors)
    ports = [free_port() for _ in range(3)]
    log = home / "triton.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PYTHON, ROOT / "tests" / "triton_server.py", *weights, *map(str, ports)],
            # Triton starts the `python3` that it finds first.
            env={**os.environ, "PATH": f"{PYTHON.parent}:{os.environ['PATH']}"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_ready(process, ports[0], log)
        yield RunningTriton({"v2": f"127.0.0.1:{ports[0]}", "grpc-v2": f"127.0.0.1:{ports[1]}"}, folders)
    finally:
        process.communicate(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/models/encoder/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    last = " ".join(log.read_text(errors="replace").splitlines()[-1:])
    pytest.skip(f"Triton does not start on this machine: {last}")


def predict(client: TestClient, name: str, texts: list[str]) -> Any:
    response = client.post(f"/v1/models/{name}:predict", json={"instances": texts})
    assert response.status_code == 200, response.text
    predictions = response.json()["predictions"]
    return [list(row.values()) if isinstance(row, dict) else row for row in predictions]


@pytest.mark.parametrize("name", ["classifier", "encoder"])
@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_answers_are_those_of_the_model(protocol: str, name: str, triton: RunningTriton, serve: Serve) -> None:
    """33 texts at once, of which Triton takes 8; INT32 and INT64; logits, and hidden states that are pooled here."""
    common: dict[str, Any] = {"model_dir": triton.folders[name], "model_name": name, "return_raw_logits": True}
    remote = serve(
        **common,
        predictor_host=triton.hosts[protocol],
        predictor_protocol=protocol,
        enable_predictor_health_check=True,
    ).client
    assert remote.get("/v2/health/ready").status_code == 200
    np.testing.assert_allclose(predict(remote, name, TEXTS), predict(serve(**common).client, name, TEXTS), atol=2e-5)


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_what_triton_does_not_have(protocol: str, triton: RunningTriton, serve: Serve) -> None:
    common: dict[str, Any] = {"predictor_host": triton.hosts[protocol], "predictor_protocol": protocol}
    folder = triton.folders["classifier"]
    unknown = serve(model_dir=folder, model_name="nope", **common, enable_predictor_health_check=True).client
    assert unknown.get("/v2/health/ready").status_code == 503
    unknown = serve(model_dir=folder, model_name="nope", **common).client
    response = unknown.post("/v1/models/nope:predict", json={"instances": ["a"]})
    assert response.status_code == 502
    assert "Request for unknown model: 'nope' is not found" in response.json()["error"]
    partial = serve(
        model_dir=folder, model_name="classifier", tensor_input_names="input_ids,attention_mask", **common
    ).client
    response = partial.post("/v1/models/classifier:predict", json={"instances": ["a"]})
    assert response.status_code == 502
    assert "missing required input(s) ['token_type_ids']" in response.json()["error"]
