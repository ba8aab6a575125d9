"""The BentoML service: what runs where. It wires and computes nothing.

protocol/  KServe V1, the Open Inference Protocol and OpenAI's API, one ASGI application, and a gRPC server beside it
runners/   the model: downloaded first if it is at a URI, loaded in the background once the server listens; an encoder
           runs in a thread of its own, a generator on vLLM's engine or, in a thread of its own, on transformers; or a
           predictor elsewhere runs it
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import bentoml
from _bentoml_sdk import Service
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.application import create_application
from protocol.http.connections.server import bound_connections, bound_handshakes
from protocol.http.middleware.allowed_methods import AnswerOptions
from protocol.http.middleware.authentication import BENTOML_ASSETS, BENTOML_PATHS
from protocol.http.middleware.request_id import EchoRequestId, label_log_records
from protocol.open_inference.grpc.server import GrpcServer
from protocol.open_inference.predictor.client import connect_predictor
from runners.core.arguments import read_arguments
from runners.core.errors import RunnerError
from runners.core.models import Models
from runners.generator.runner import GeneratorRunner
from runners.hosting.idle_memory import limit_heaps, release_memory
from runners.hosting.selection import create_runner
from runners.hosting.startup import (
    being_built,
    bound_shutdown,
    configure_logging,
    create_image,
    exit_unless_free,
    resolve_resources,
    resolve_ssl,
    resolve_workers,
    run_or_exit,
    secure_keys,
    start_or_exit,
    watch_for_failed_workers,
)
from runners.hosting.storage.download import localize_model

NAME = "huggingface_runtime"
HERE = Path(__file__).resolve().parent
# A built Bento keeps its source in src/, beside it the bento.yaml with the arguments it was built with.
IN_BENTO = (HERE.parent / "bento.yaml").is_file()

configure_logging()
label_log_records()
limit_heaps()
given = vars(bentoml.use_arguments())
try:
    arguments = read_arguments(
        command_line={} if IN_BENTO else given, environment=os.environ, baked=given if IN_BENTO else {}
    )
    arguments = resolve_workers(arguments, NAME)
    resources = resolve_resources(arguments, in_bento=IN_BENTO or being_built())
    ssl = resolve_ssl(arguments)
    secure_keys(arguments)
    if not being_built():
        # The parent process downloads, before it knows which service the model makes; its workers find the folder.
        arguments = localize_model(arguments)
    runner = create_runner(arguments, connect_predictor)
except RunnerError as error:
    raise SystemExit(f"error: {error}") from None
models = Models([runner])
grpc_server = GrpcServer(models, arguments) if arguments.enable_grpc else None
application = create_application(models, arguments, os.environ.get("KSERVE_OPENAI_ROUTE_PREFIX", "/openai"))


class DirectService(Service[Any]):
    """Hands requests to the application without BentoML's middleware, which costs more than they do.

    Tracing, time-outs and limits of concurrency are that middleware's; the queue before the model has its own limit.
    """

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        bound_connections(arguments)
        behind_middleware = EchoRequestId(AnswerOptions(super().to_asgi(is_main), models))

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            path = scope.get("path", "")
            direct = scope["type"] == "http" and path not in BENTOML_PATHS and not path.startswith(BENTOML_ASSETS)
            await (application if direct else behind_middleware)(scope, receive, send)

        return route


class Server:
    """One model, from start to stop."""

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        if grpc_server is not None:
            exit_unless_free(arguments.grpc_port, "grpc_port")
        watch_for_failed_workers()

    @bentoml.on_startup
    async def start(self) -> None:
        models.changeable = arguments.workers == 1
        if arguments.ssl_certfile is not None:
            bound_handshakes(arguments.header_timeout)
        if grpc_server is not None:
            await start_or_exit(grpc_server)
        self._running = asyncio.create_task(run_or_exit(models))
        self._releasing = asyncio.create_task(release_memory(lambda: models.ready, lambda: models.busy))
        bound_shutdown(runner.close, grpc_server)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        if grpc_server is not None:
            await grpc_server.stop()
        self._running.cancel()
        self._releasing.cancel()
        await asyncio.to_thread(runner.close)

    async def __is_ready__(self) -> bool:
        return models.ready

    async def __is_alive__(self) -> bool:
        return models.live


class Encoder(Server):
    """Classification of tokens and texts, fill-mask, question answering, embedding and ranking, on our own engine."""


class Generator(Server):
    """Text generation, on vLLM where it runs the model, else on transformers."""


# One name, and one service in every Bento: the model that is served decides which of the two it is.
Runtime = bentoml.service(
    service_class=DirectService,
    name=NAME,
    image=create_image(),
    # As many GPUs as the engine's parallelism takes, which for an encoder is one.
    resources=resources,
    workers=arguments.workers,
    envs=[
        {"name": "SAFETENSORS_FAST_GPU", "value": "1"},
        {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
    ],
    # Over TLS where there is a certificate; gRPC reads the same arguments.
    ssl=ssl,
    extra_ports=[arguments.grpc_port] if grpc_server is not None else [],
    endpoints={"livez": "/v2/health/live", "readyz": "/v2/health/ready"},
    # BentoML's own request metrics label by raw path; /metrics is the application's.
    metrics={"enabled": False},
)(Generator if isinstance(runner, GeneratorRunner) else Encoder)
