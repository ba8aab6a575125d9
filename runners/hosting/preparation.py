"""The checks and downloads that BentoML's parent process does once, before it starts the workers."""

from __future__ import annotations

import logging
import os

from runners.core.declarations import Configuration, ModelDeclaration
from runners.core.errors import RunnerError
from runners.hosting.change_server import start_change_server
from runners.hosting.failures import exit_on_error, watch_for_failed_workers
from runners.hosting.life.arbiter import supervise_workers
from runners.hosting.operator_settings import OperatorSettings, warn_of_settings
from runners.hosting.process import find_http_port
from runners.hosting.start_checks import check_models, check_server
from runners.hosting.storage.localize import localize_model
from runners.hosting.writable_folders import CHOSEN_VARIABLE

logger = logging.getLogger(__name__)


def prepare_workers(configuration: Configuration, service: str, settings: OperatorSettings) -> None:
    """Check the files and the port of the arguments, and download the models, which the workers find on the disk.

    If this fails, the parent process ends with one line. If it failed in a worker, BentoML would restart the worker
    forever. What the runner checks fails in the first worker, which ends the server with one line too.

    Args:
        service: the name of the service.
        settings: the operator's settings of BentoML's.
    """
    arguments = configuration.arguments
    if (chosen := os.environ.get(CHOSEN_VARIABLE)) is not None:
        logger.warning("%s", chosen)
    with exit_on_error():
        warn_of_settings(settings, arguments, os.environ)
        check_server(arguments, find_http_port())
        check_models(configuration, asks_hub=True)
        for model in configuration.models:
            if model.load:
                _download(model, configuration)
        if arguments.workers > 1:
            start_change_server(configuration)
    watch_for_failed_workers(supervise_workers(arguments, service).fail)


def _download(model: ModelDeclaration, configuration: Configuration) -> None:
    """
    Raises:
        RunnerError: the model cannot be downloaded, and the server does not go on without it.
    """
    try:
        localize_model(model.arguments)
    except RunnerError as error:
        if configuration.arguments.on_load_failure == "exit" or len(configuration.models) == 1:
            raise
        logger.warning("%s is tried again by each worker: %s", model.name, error)
