from __future__ import annotations

import asyncio
import gc
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import trustme
from anyio.from_thread import start_blocking_portal
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["BENTOML_DO_NOT_TRACK"] = "true"
# Before torch is imported: beside the servers that tests start, spinning at OpenMP's barriers takes minutes.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from starlette.testclient import TestClient
from transformers.utils import logging as transformers_logging

from demo.smollm import main as write_smollm
from protocol.application import create_application
from protocol.http.middleware.cors import make_cors
from protocol.open_inference.grpc.server import GrpcServer
from protocol.open_inference.predictor.client import connect_predictor
from runners.core.arguments import Arguments
from runners.core.declarations import FIRST_VERSION, ModelDeclaration
from runners.core.device_thread import DeviceThread
from runners.core.models import Models
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from runners.encoder.runner import EncoderRunner
from runners.generator.runner import GeneratorRunner
from runners.hosting.selection import create_runner
from tests.families import FAMILIES
from tests.generators import save_generator
from tests.served import Served
from tests.servers import free_port

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

# A machine that is busy with other tests is no reason to fail.
settings.register_profile("without_deadline", deadline=None)
settings.load_profile("without_deadline")

ModelFolder = Callable[..., Path]
GeneratorFolder = Callable[[str], Path]
Serve = Callable[..., Served]
ServeSeveral = Callable[..., Served]
Dial = Callable[..., grpc.Channel]


# Modules that write to the repository's folder, and so run one after the other; the playground's make its models there.
_WRITERS = ("tests/docs/test_commands.py", "tests/test_demo.py", "tests/test_package.py", "tests/playground/")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the tests that take longest first, so that the workers of pytest-xdist end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run the tests of a module in one worker, which keeps its fixtures, and those of all writers too."""
    from xdist.scheduler import LoadScopeScheduling

    class ModuleScheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.partition("::")[0]
            return "writers" if module.startswith(_WRITERS) else module

    return ModuleScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def collect_garbage() -> Iterator[None]:
    """Free the models of a module: what a runner loads is excluded from collections until some runner is closed."""
    yield
    gc.unfreeze()
    gc.collect()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Where tests that are coroutines run."""
    return "asyncio"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """A tiny seeded model: `model_folder("bert", "fill_mask", num_labels=3)`."""
    made: dict[str, Path] = {}

    def make(family: str, task: str, **config: Any) -> Path:
        key = f"{family}-{task}-{sorted(config.items())}"
        if key not in made:
            folder = tmp_path_factory.mktemp("model")
            made[key] = FAMILIES[family].save(folder, task, **config)
        return made[key]

    return make


@pytest.fixture(scope="session")
def generator_folder(tmp_path_factory: pytest.TempPathFactory) -> GeneratorFolder:
    """A tiny seeded generator: `generator_folder("t5")`."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            made[family] = save_generator(tmp_path_factory.mktemp(family), family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct in float32, in which greedy output does not depend on the batch."""
    folder = tmp_path_factory.mktemp("smollm")
    write_smollm(folder, torch.float32)
    return folder


@pytest.fixture(scope="module")
def serve_several() -> Iterator[ServeSeveral]:
    """The whole application in this process: `serve_several({"model_dir": ..., "version": "2"}, {...}, api_key="k")`.

    What is loaded is closed with the module: a loaded model takes some 100 MB of kernels, however small it is.
    """
    started: list[tuple[Models, DeviceThread]] = []

    def start(*declared: Mapping[str, Any], **arguments: Any) -> Served:
        declarations = [
            ModelDeclaration(Arguments.model_validate({**arguments, **values}), version, load)
            for values, version, load in map(split_declaration, declared)
        ]
        server = declarations[0].arguments
        device = DeviceThread()

        def create(declaration: ModelDeclaration) -> EncoderRunner | GeneratorRunner:
            return create_runner(declaration.arguments, connect_predictor, device, declaration.version)

        models = Models(declarations, create)
        started.append((models, device))

        async def load() -> None:
            for model in models:
                if model.is_wanted:
                    await models.load_at_start(model)

        # A loop of its own, as the test may run in one.
        with start_blocking_portal() as portal:
            portal.call(load)
        client = TestClient(create_application(models, server, cors=make_cors(server)), raise_server_exceptions=False)
        return Served(client, models, server)

    yield start
    for models, device in started:
        models.close()
        device.close()


def split_declaration(declared: Mapping[str, Any]) -> tuple[dict[str, Any], str, bool]:
    """The arguments of a declared model, its version, and whether it is loaded."""
    others = {name: value for name, value in declared.items() if name not in ("version", "load")}
    arguments = others | {"model_dir": str(others["model_dir"])}
    return arguments, declared.get("version", FIRST_VERSION), declared.get("load", True)


@pytest.fixture(scope="module")
def serve(serve_several: ServeSeveral) -> Serve:
    """One model: `serve(model_dir=..., return_probabilities=True)`."""
    return lambda **arguments: serve_several(arguments)


@dataclass(frozen=True)
class Certificate:
    """A certificate of localhost, its key, and the authority that vouches for it; all PEM."""

    certificate: Path
    key: Path
    authority: Path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    made = Certificate(folder / "certificate.pem", folder / "key.pem", folder / "authority.pem")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(made.certificate)
    issued.private_key_pem.write_to_path(made.key)
    authority.cert_pem.write_to_path(made.authority)
    return made


@pytest.fixture
def files(certificate: Certificate, tmp_path: Path) -> Certificate:
    """A copy of the certificate's files, which a test may replace."""
    copies = {name: Path(shutil.copy(path, tmp_path)) for name, path in vars(certificate).items()}
    return replace(certificate, **copies)


def renew(files: Certificate, folder: Path) -> Path:
    """Replace the pair by one of another authority, whose certificate is returned."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(files.key)
    issued.cert_chain_pems[0].write_to_path(files.certificate)
    authority.cert_pem.write_to_path(folder / "new-authority.pem")
    return folder / "new-authority.pem"


@pytest.fixture(scope="module")
def dial(serve: Serve) -> Iterator[Dial]:
    """A gRPC channel to what `serve` serves, in this process: `dial(served, max_streams=1)`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    servers: list[GrpcServer] = []

    def start(served: Served, **arguments: Any) -> grpc.Channel:
        port = free_port()
        server = GrpcServer(served.models, served.arguments.model_copy(update={"grpc_port": port, **arguments}))
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        servers.append(server)
        return grpc.insecure_channel(f"localhost:{port}")

    yield start
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(20), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


@pytest.fixture
def ended() -> Iterator[list[RequestRecord]]:
    """The records of requests that end during the test."""
    records: list[RequestRecord] = []
    add_observer(records.append)
    yield records
    remove_observer(records.append)
