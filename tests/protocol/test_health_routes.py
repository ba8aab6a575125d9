"""What vLLM's and Text Embeddings Inference's probes ask at the root."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from protocol.application import create_application
from protocol.versions import SERVER_VERSION
from runners.core.access_log import make_access_log
from runners.core.arguments import Arguments
from runners.core.probe_paths import LOAD_PATH, VERSION_PATH
from runners.core.request_record import add_observer, remove_observer
from runners.hosting.selection import create_runner
from tests.conftest import ModelFolder, Serve
from tests.served import models_of


def test_health_of_a_server_that_is_ready_or_not(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", "fill_mask")
    assert serve(model_dir=folder).client.get("/health").status_code == 200
    arguments = Arguments(model_dir=str(folder))
    loading = TestClient(create_application(models_of(create_runner(arguments)), arguments))
    assert loading.get("/health").status_code == 503


@pytest.mark.parametrize(
    ("path", "answer"), [(VERSION_PATH, {"version": SERVER_VERSION}), (LOAD_PATH, {"server_load": 0})]
)
def test_probes_of_vllm(path: str, answer: dict[str, Any], model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask"), api_key="secret").client
    lines: list[bytes] = []
    log = make_access_log(lines.append, {}, is_json=True, component="worker", logs_probes=False)
    add_observer(log)
    response = client.get(path)
    remove_observer(log)
    assert (response.status_code, response.json()) == (200, answer)
    assert not lines
    assert client.head(path).status_code == 200
    assert client.post(path, headers={"authorization": "Bearer secret"}).status_code == 405


async def test_the_load_counts_requests_of_models_only(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "fill_mask"))
    arrived, released = asyncio.Event(), asyncio.Event()

    async def body() -> Any:
        yield b'{"instances": '
        arrived.set()
        await released.wait()
        yield b'["a"]}'

    transport = httpx.ASGITransport(served.client.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        headers = {"content-type": "application/json"}
        call = asyncio.create_task(client.post("/v1/models/model:predict", content=body(), headers=headers))
        await arrived.wait()
        assert (await client.get(LOAD_PATH)).json() == {"server_load": 1}
        released.set()
        await call
        assert (await client.get(LOAD_PATH)).json() == {"server_load": 0}
