"""Black box: what gRPC shares with the process that serves it."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest

from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.conftest import Certificate, ModelFolder
from tests.servers import BENTOML, ServerProcess
from tests.waiting import wait_until
from tests.wire import infer_request

pytestmark = pytest.mark.slow


def infer(channel: grpc.Channel, *texts: str) -> Any:
    return GRPCInferenceServiceStub(channel).ModelInfer(infer_request(*texts, raw=True), timeout=60)


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "sequence_classification")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return tmp_path


def serve(folder: Path, home: Path, *words: str, **environment: str) -> ServerProcess:
    return ServerProcess(
        [*BENTOML, "serve", ".", "--port={port}", f"--arg=model_dir={folder}", *words], home, environment
    )


def test_workers_share_the_port(folder: Path, home: Path) -> None:
    workers = "services.huggingface_runtime.workers=2"
    server = serve(folder, home, "--arg=enable_repository=true", BENTOML_CONFIG_OPTIONS=workers)
    try:
        server.wait_until("/v2/health/ready", 200)
        # The server is ready with its first worker.
        wait_until(lambda: len(_listening(server.grpc_port)) == 2, seconds=60)
        _wait_for_answer(server)
        assert "model_repository" in httpx.get(f"{server.url}/v2").json()["extensions"]
        assert httpx.post(f"{server.url}/v2/repository/models/model/unload").status_code == 200
        # Each channel reaches one of the workers.
        for _ in range(8):
            own = [("grpc.use_local_subchannel_pool", 1)]
            with (
                grpc.insecure_channel(f"localhost:{server.grpc_port}", own) as channel,
                pytest.raises(grpc.RpcError, match=r"Model with name model is not ready\."),
            ):
                infer(channel, "a")
    finally:
        assert server.terminate() == 0


def _listening(port: int) -> set[int | None]:
    """The processes that listen on a port."""
    connections = psutil.net_connections("tcp")
    return {each.pid for each in connections if each.status == "LISTEN" and each.laddr.port == port}


def _wait_for_answer(server: ServerProcess) -> None:
    """A worker that still loads says so; a channel of its own may reach the other."""

    def is_answered() -> bool:
        own = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"localhost:{server.grpc_port}", own) as channel, contextlib.suppress(grpc.RpcError):
            return len(infer(channel, "a").outputs) > 0
        return False

    wait_until(is_answered)


def test_a_port_in_use_ends_the_start(folder: Path, home: Path) -> None:
    first = serve(folder, home / "first")
    try:
        # Before that, it may not listen for gRPC yet.
        first.wait_until("/v2/health/ready", 200)
        second = serve(folder, home / "second", RUNTIME_GRPC_PORT=str(first.grpc_port))
        try:
            assert second.wait_for_exit() == 1
            assert (
                second.output.count(f"port {first.grpc_port} cannot be used: Address already in use; set --grpc_port")
                == 1
            )
            assert "Traceback" not in second.output
        finally:
            second.terminate()
    finally:
        first.terminate()


def test_without_grpc(folder: Path, home: Path) -> None:
    server = serve(folder, home, "--arg=enable_grpc=false")
    try:
        server.wait_until("/v2/health/ready", 200)
        with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel, pytest.raises(grpc.RpcError) as refused:
            infer(channel, "a")
        assert refused.value.code().name == "UNAVAILABLE"
    finally:
        assert server.terminate() == 0


def test_tls_for_both(folder: Path, home: Path, certificate: Certificate) -> None:
    server = serve(
        folder, home, f"--arg=ssl_certfile={certificate.certificate}", f"--arg=ssl_keyfile={certificate.key}"
    )
    try:
        trusting = ssl.create_default_context(cafile=str(certificate.authority))

        def is_ready() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(f"https://localhost:{server.port}/v2/health/ready", verify=trusting).is_success
            return False

        wait_until(is_ready, seconds=60)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://localhost:{server.port}/v2/health/ready")
        credentials = grpc.ssl_channel_credentials(certificate.authority.read_bytes())
        with grpc.secure_channel(f"localhost:{server.grpc_port}", credentials) as channel:
            assert infer(channel, "a").outputs
    finally:
        assert server.terminate() == 0


def test_a_call_in_flight_is_answered_when_the_server_is_told_to_end(folder: Path, home: Path) -> None:
    server = serve(folder, home)
    try:
        server.wait_until("/v2/health/ready", 200)
        with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
            infer(channel, "a")
            call = GRPCInferenceServiceStub(channel).ModelInfer.future(
                infer_request(*["word " * 400] * 400, raw=True), timeout=60
            )
            time.sleep(0.3)
            ending = threading.Thread(target=server.terminate)
            ending.start()
            time.sleep(0.3)
            assert not call.done()
            with pytest.raises(grpc.RpcError) as refused:
                infer(channel, "b")
            assert refused.value.code().name == "UNAVAILABLE"
            assert call.result().outputs[0].shape == [400]
        ending.join()
    finally:
        assert server.terminate() == 0
