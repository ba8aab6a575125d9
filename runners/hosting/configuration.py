"""The arguments of the service, and BentoML's configuration that follows from them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import bentoml
from bentoml._internal.configuration.containers import BentoMLContainer

from runners.core.argument_sources import read_configuration
from runners.core.arguments import Arguments
from runners.core.declarations import Configuration
from runners.hosting.image import create_image
from runners.hosting.operator_settings import OperatorSettings
from runners.hosting.process import is_parent, is_worker
from runners.hosting.resources import resolve_workers
from runners.hosting.storage.declarations import localize_declarations
from runners.hosting.tls import resolve_ssl


def read_service_configuration(settings: OperatorSettings, in_bento: bool) -> Configuration:
    """Read the arguments of this process from BentoML, the environment and the models file or repository.

    Args:
        settings: the operator's settings of BentoML's.
        in_bento: whether BentoML's arguments are those that the Bento was built with, and not those of a command line.

    Raises:
        ArgumentsError: an argument is unknown or wrong, or a file cannot be read.
    """
    bentoml_arguments = vars(bentoml.use_arguments())
    if not in_bento and (is_parent() or is_worker()):
        bentoml_arguments = _drop_gpus_of_bentofile(bentoml_arguments)
    command_line, bento_arguments = ({}, bentoml_arguments) if in_bento else (bentoml_arguments, {})

    def read(workers: int) -> Configuration:
        # The parent process has checked the repository; what is wrong in a worker has come to it since.
        defaults = settings.to_arguments(workers)
        configuration = read_configuration(
            command_line, os.environ, bento_arguments, localize_declarations, is_worker(), defaults
        )
        return configuration.replace_server_arguments(resolve_workers(configuration.arguments, settings))

    settings.set_variables(os.environ)
    configuration = read(1)
    workers = configuration.arguments.workers
    return configuration if settings.to_arguments(workers) == settings.to_arguments() else read(workers)


def _drop_gpus_of_bentofile(bentoml_arguments: Mapping[str, object]) -> dict[str, object]:
    """Without the `gpu: 0` of the bentofile of a source tree: it is for the Bento that is built from it.

    The values of `--arg` are text, so that `--arg gpu=0` holds.
    """
    return {name: value for name, value in bentoml_arguments.items() if (name, value) != ("gpu", 0)}


def configure_service(arguments: Arguments) -> dict[str, Any]:
    """The keyword arguments of `bentoml.service`, without the name and the resources."""
    return {
        "image": create_image(),
        "workers": arguments.workers,
        "envs": [
            {"name": "SAFETENSORS_FAST_GPU", "value": "1"},
            {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
        ],
        # gRPC reads the same arguments.
        "ssl": resolve_ssl(arguments),
        "extra_ports": [arguments.grpc_port] if arguments.enable_grpc else [],
        "endpoints": {"livez": "/v2/health/live", "readyz": "/v2/health/ready"},
        # The proxy of a service that depends on this one closes its connections at these limits, and with them the
        # requests on them: https://github.com/bentoml/BentoML/issues/5540
        "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
        # BentoML's request metrics have the raw path as a label; the application serves /metrics.
        "metrics": {"enabled": False},
    }


def replace_bentoml_settings(arguments: Arguments) -> None:
    """Once BentoML has merged its settings: let arguments of TLS win, and this server alone trace its requests.

    BentoML's tracer would see only what BentoML answers, and ends a worker whose exporter is not installed.
    """
    if arguments.ssl_certfile is not None:
        BentoMLContainer.config.api_server.ssl.set({**BentoMLContainer.ssl.get(), **resolve_ssl(arguments)})
    BentoMLContainer.config.tracing.exporter_type.set(None)
