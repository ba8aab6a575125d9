"""Black box: one started server in front of another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.families import MINILM
from tests.servers import BENTOML, ServerProcess, free_port

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/model:predict"
TEXTS = ["Hello world", "Serve Hugging Face models", "word " * 300]


@dataclass(frozen=True)
class Servers:
    """The predictor, which has the model, and two servers in front of it."""

    predictor: ServerProcess
    fronts: dict[str, ServerProcess]


def start(home: Path, grpc_port: int, *arguments: str) -> ServerProcess:
    given = [f"--arg={each}" for each in (f"model_dir={MINILM}", f"grpc_port={grpc_port}", *arguments)]
    return ServerProcess([*BENTOML, "serve", ".", "--port={port}", *given], home)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    home, grpc_port = tmp_path_factory.mktemp("home"), free_port()
    predictor = start(home, grpc_port)
    hosts = {"v2": f"127.0.0.1:{predictor.port}", "grpc-v2": f"127.0.0.1:{grpc_port}"}
    fronts = {
        protocol: start(
            home, free_port(), f"predictor_host={host}", f"predictor_protocol={protocol}",
            "enable_predictor_health_check=true",
        )
        for protocol, host in hosts.items()
    }  # fmt: skip
    try:
        for server in (predictor, *fronts.values()):
            server.wait_until("/v2/health/ready", 200)
        yield Servers(predictor, fronts)
    finally:
        for server in (*fronts.values(), predictor):
            server.terminate()


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_answers_are_the_predictors(servers: Servers, protocol: str) -> None:
    expected = httpx.post(servers.predictor.url + PREDICT, json={"instances": TEXTS}).json()["predictions"]
    found = httpx.post(servers.fronts[protocol].url + PREDICT, json={"instances": TEXTS}).json()["predictions"]
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_without_its_predictor_a_server_lives_and_is_not_ready(servers: Servers) -> None:
    """Last of this module, since it ends the predictor."""
    servers.predictor.terminate()
    for front in servers.fronts.values():
        front.wait_until("/v2/health/ready", 503, seconds=15)
        front.wait_until("/readyz", 503, seconds=5)
        assert httpx.get(front.url + "/v2/health/live").status_code == 200
        response = httpx.post(front.url + PREDICT, json={"instances": TEXTS})
        assert (response.status_code, response.json()) == (503, {"error": "Model with name model is not ready."})
        assert "the predictor is not ready" in front.output
        assert "Traceback" not in front.output
