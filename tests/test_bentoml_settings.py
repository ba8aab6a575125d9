"""An operator's settings of BentoML's on started servers: what they do, and what a line at the start says of them."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from tests.collector import Collector
from tests.conftest import Certificate, ModelFolder
from tests.servers import BENTOML, ServerProcess, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

PREDICT = "/v1/models/model:predict"
PAGE, OTHER = "https://chat.example.com", "https://x.other.example"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    started = Collector()
    yield started
    started.close()


def write(folder: Path, settings: dict[str, object]) -> str:
    path = folder / "bentoml.yaml"
    path.write_text(yaml.safe_dump({"services": settings}, sort_keys=False))
    return str(path)


def find_remarks(server: ServerProcess) -> list[str]:
    """The lines about settings, of BentoML's parent process."""
    found = re.findall(r"\[WARNING\] \[cli\] (.*(?:BentoML's configuration|of bentoml serve).*)", server.output)
    return [str(line) for line in found]


def test_settings_that_have_an_effect(
    collector: Collector, certificate: Certificate, model_folder: ModelFolder, tmp_path: Path
) -> None:
    """Of all services, of this one, and in the form of a variable, which wins."""
    settings = {
        "http": {
            "cors": {
                "enabled": True,
                "access_control_allow_origins": PAGE,
                "access_control_allow_origin_regex": r"https://\w+\.other\.example",
                "access_control_max_age": 7,
            }
        },
        "ssl": {"enabled": True, "certfile": str(certificate.certificate), "keyfile": str(certificate.key)},
        "huggingface_runtime": {
            "traffic": {"max_concurrency": 5},
            "tracing": {
                "exporter_type": "otlp", "sample_rate": 1.0,
                "otlp": {"protocol": "grpc", "endpoint": collector.grpc_endpoint},
            },
        },
    }  # fmt: skip
    environment = {
        "BENTOML_CONFIG": write(tmp_path, settings),
        "BENTOML_CONFIG_OPTIONS": "services.huggingface_runtime.logging.access.enabled=true",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    folder = model_folder("bert", "sequence_classification")
    server = ServerProcess(
        [*BENTOML, "serve", ".", "--port={port}", f"--arg=model_dir={folder}"], tmp_path, environment
    )
    trusted = ssl.create_default_context(cafile=str(certificate.authority))
    try:
        with httpx.Client(base_url=f"https://localhost:{server.port}", verify=trusted, timeout=30) as client:

            def is_ready() -> bool:
                try:
                    return client.get("/v2/health/ready").status_code == 200
                except httpx.TransportError:
                    return False

            wait_until(is_ready, 120)
            for origin in (PAGE, OTHER):
                headers = {"origin": origin}
                answer = client.post(PREDICT, json={"instances": ["a"]}, headers=headers)
                assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
                preflight = {**headers, "access-control-request-method": "POST"}
                assert client.options(PREDICT, headers=preflight).headers["access-control-max-age"] == "7"
            answer = client.post(PREDICT, json={"instances": ["a"]}, headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in answer.headers
        credentials = grpc.ssl_channel_credentials(certificate.authority.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
            grpc.channel_ready_future(channel).result(30)
        wait_until(lambda: any(span.name == f"POST {PREDICT.replace('model:', '{name}:')}" for span in collector.spans))
        assert find_remarks(server) == []
        assert "route=/v1/models/{name}:predict" in server.output
    finally:
        assert server.terminate() == 0


def test_settings_that_have_none(model_folder: ModelFolder, tmp_path: Path) -> None:
    settings = {
        "traffic": {"timeout": 5},
        "tracing": {"exporter_type": "zipkin", "zipkin": {"endpoint": f"http://localhost:{free_port()}"}},
        "huggingface_runtime": {"traffic": {"max_concurrency": 5}},
    }
    folder = model_folder("bert", "sequence_classification")
    arguments = [f"--arg=model_dir={folder}", "--arg=max_concurrent_requests=6"]
    command = [*BENTOML, "serve", ".", "--port={port}", "--timeout=5", *arguments]
    server = ServerProcess(command, tmp_path, {"BENTOML_CONFIG": write(tmp_path, settings)})
    try:
        server.wait_until("/v2/health/ready", 200)
        starts = [line.split(":")[0] for line in find_remarks(server)]
        assert starts == [
            "services.traffic.timeout of BentoML's configuration has no effect",
            "services.tracing.zipkin.endpoint of BentoML's configuration has no effect",
            "services.traffic.max_concurrency of BentoML's configuration has no effect",
            "services.tracing of BentoML's configuration has no effect",
            "--timeout of bentoml serve has no effect",
        ]
    finally:
        assert server.terminate() == 0
