"""The BentoML service: what runs where.

protocol/  the protocols over HTTP as one ASGI application, and a gRPC server beside it
runners/   the models: encoders on this project's engine, generators on vLLM or transformers, or remote predictors

BentoML's parent process imports this module, calls `prepare` once and starts the workers. Each worker imports it again
and calls `start`, which loads the models in the background. A build imports it too: an import downloads nothing and
probes no device. What only a worker runs is imported in `create_worker`: the parent starts earlier and stays small.
"""

from __future__ import annotations

import os
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
from starlette.types import ASGIApp

from protocol.context import check_root_path, normalize_prefix
from runners.core.cloud_routes import read_predict_route
from runners.core.garbage import importing
from runners.hosting.configuration import configure_service, read_service_configuration, replace_bentoml_settings
from runners.hosting.failures import exit_on_error, stop_on_error
from runners.hosting.operator_settings import read_operator_settings
from runners.hosting.preparation import prepare_workers
from runners.hosting.process import configure_log, configure_process, find_worker_position
from runners.hosting.resources import fit_to_machine, request_gpus
from runners.hosting.selection import create_models, expects_generator

if TYPE_CHECKING:
    from protocol.http.middleware.cors import Cors
    from runners.hosting.worker import Worker

NAME = "huggingface_runtime"
# A built Bento has this file in src/, beside its bento.yaml.
IN_BENTO = (Path(__file__).resolve().parents[1] / "bento.yaml").is_file()

configure_process()
with exit_on_error():
    settings = read_operator_settings(NAME)
    configuration = read_service_configuration(settings, IN_BENTO)
    arguments = configuration.arguments
    configure_log(arguments)
    one_gpu, parallel_gpus = (request_gpus(configuration, count) for count in (1, configuration.parallel_size))
    generates = expects_generator(configuration)
    openai_prefix = normalize_prefix(os.environ.get("KSERVE_OPENAI_ROUTE_PREFIX", "/openai"))
    predict_route = read_predict_route(os.environ)
    root_path = check_root_path(arguments.root_path, openai_prefix)


@cache
def create_cors() -> Cors | None:
    from protocol.http.middleware.cors import make_cors

    return make_cors(arguments, settings.to_cors())


@cache
def create_worker() -> Worker:
    from protocol.open_inference.predictor.client import connect_predictor
    from runners.core.device_thread import DeviceThread

    with stop_on_error():
        # Libraries are loaded from now on, while modules are imported.
        device = DeviceThread(position=find_worker_position())
        models = create_models(configuration, connect_predictor, device)
    from protocol.application import create_application
    from protocol.http.connections.gate import Gate
    from protocol.http.connections.uvicorn_settings import bound_connections
    from protocol.open_inference.grpc.server import GrpcServer
    from runners.hosting.worker import Worker

    application = create_application(models, arguments, openai_prefix, create_cors(), predict_route)
    grpc_server = GrpcServer(models, arguments) if arguments.enable_grpc else None
    connections = bound_connections(arguments, root_path)
    return Worker(models, device, arguments, application, Gate(), connections, grpc_server)


class DirectService(bentoml.Service[Any]):
    """A service whose requests do not pass BentoML's middleware."""

    config: dict[str, Any]

    def inject_config(self) -> None:
        """Allocate the GPUs of this machine for BentoML's parent process; a build writes what the class declares."""
        declared = self.config
        self.config = {**declared, "resources": fit_to_machine(declared["resources"], arguments, IN_BENTO)}
        super().inject_config()
        self.config = declared
        replace_bentoml_settings(arguments)

    def schema(self) -> dict[str, Any]:
        """BentoML's description of the service, with the methods that its models answer, as far as these are known."""
        from protocol.bentoml_api.served_methods import filter_routes, find_methods, find_served

        if create_worker.cache_info().currsize:
            served = find_served(create_worker().models)
        else:
            served = find_methods({model.arguments.task for model in configuration.models})
        return filter_routes(self.whole_schema, served)

    @cached_property
    def whole_schema(self) -> dict[str, Any]:
        """The description with all methods, which takes 10 ms to make."""
        described: dict[str, Any] = super().schema()
        return described

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        from protocol.bentoml_api.pickles import mark_private
        from protocol.http.direct import route_directly

        worker, bentoml_application = create_worker(), super().to_asgi(is_main)
        application = route_directly(worker.application, bentoml_application, worker.models, root_path, create_cors())
        return application if is_main else mark_private(application)


def create_method(name: str) -> Any:
    """One of the methods that BentoML's clients call."""
    with importing("protocol.bentoml_api.functions"):
        from protocol.bentoml_api.functions import create_function
        from protocol.bentoml_api.methods import METHODS

    method = METHODS[name]
    function = create_function(method, lambda: create_worker().models, arguments)
    return bentoml.api(route=method.path)(function)


class Server:
    """All models, in BentoML's life cycle, and BentoML's methods."""

    classify = create_method("classify")
    classify_tokens = create_method("classify_tokens")
    classify_zero_shot = create_method("classify_zero_shot")
    fill_mask = create_method("fill_mask")
    answer = create_method("answer")
    embed = create_method("embed")
    embed_sparse = create_method("embed_sparse")
    rank = create_method("rank")
    generate = create_method("generate")
    chat = create_method("chat")

    @bentoml.on_deployment
    @staticmethod
    def prepare() -> None:
        prepare_workers(configuration, NAME, settings)

    @bentoml.on_startup
    async def start(self) -> None:
        await create_worker().start()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await create_worker().stop()


service = partial(bentoml.service, service_class=DirectService, name=NAME, **configure_service(arguments))


# BentoML shows the classes' docstrings to users, in /schema.json.
# Each worker runs this project's engine in a thread, on one GPU or on the CPU.
@service(resources=one_gpu)
class Encoder(Server):
    """Serves encoders, which classify texts or tokens, fill masks, answer questions, embed or rank texts."""


# vLLM runs in processes of its own, on the GPUs that its parallel sizes ask for, or on the CPU. Where vLLM does not run
# a generator, transformers runs it in the thread of the worker that runs encoders too.
@service(resources=parallel_gpus)
class Generator(Server):
    """Serves generators, which continue texts and answer chats, and encoders beside them."""


# A Bento has one service, whichever models it serves.
Runtime = Generator if generates else Encoder
