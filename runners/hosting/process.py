"""Settings of the process, before it starts threads."""

from __future__ import annotations

import os

import bentoml
import click
from bentoml import server_context
from bentoml._internal.configuration.containers import BentoMLContainer

from runners.core.arguments import Arguments
from runners.core.log_settings import LogSettings, peek_log_settings
from runners.hosting.failures import exit_on_error
from runners.hosting.idle_memory import configure_heaps
from runners.hosting.kernel_caches import limit_kernel_caches
from runners.hosting.life.channel import take_channel
from runners.hosting.life.reports import end_with_parent
from runners.hosting.life.signals import heed_early_signals
from runners.hosting.logs import server_log
from runners.hosting.metrics_folder import enter_metrics_folder, make_metrics_folder
from runners.hosting.working_folder import enter_launch_folder


def configure_process() -> None:
    """Set the signals, the folders, the log and the bounds of memory of BentoML's parent process or of a worker."""
    if is_parent():
        heed_early_signals()
    elif is_worker() and (channel := take_channel()) is not None:
        end_with_parent(channel)
    enter_launch_folder(os.environ)
    # prometheus_client reads its folder when it is imported.
    if is_worker():
        enter_metrics_folder(os.environ)
    elif is_parent():
        with exit_on_error():
            make_metrics_folder(os.environ)
    settings = peek_log_settings(os.environ, bento_arguments=vars(bentoml.use_arguments()))
    server_log.configure(settings, is_parent() or is_worker())
    configure_heaps()
    limit_kernel_caches(os.environ)


def configure_log(arguments: Arguments) -> None:
    """Set the log as the arguments say, which a models file may have, too."""
    server_log.configure(LogSettings.of(arguments), is_parent() or is_worker())


def is_parent() -> bool:
    """Whether this is BentoML's parent process of a server, which imports the service before it starts the workers."""
    command = click.get_current_context(silent=True)
    return not is_worker() and command is not None and command.info_name in ("serve", "serve-http")


def find_http_port() -> int:
    """In BentoML's parent process: the port of `bentoml serve`, by its command line or its configuration."""
    command = click.get_current_context(silent=True)
    port = None if command is None else command.params.get("port")
    return int(port or BentoMLContainer.http.port.get())


def find_worker_position() -> int:
    """Which of the workers this process is, counted from 0; BentoML counts from 1."""
    return (server_context.worker_index or 1) - 1


def is_worker() -> bool:
    return server_context.worker_index is not None
