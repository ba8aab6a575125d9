"""Settings of the process, before it starts threads."""

from __future__ import annotations

import os

import click
from bentoml import server_context

from runners.hosting.idle_memory import configure_heaps
from runners.hosting.life.channel import take_channel
from runners.hosting.life.reports import end_with_parent
from runners.hosting.life.signals import heed_early_signals
from runners.hosting.logs import configure_logging
from runners.hosting.working_folder import enter_launch_folder


def configure_process() -> None:
    """Set the signals, the working folder, the log and the heaps of BentoML's parent process or of a worker."""
    if is_parent():
        heed_early_signals()
    elif is_worker() and (channel := take_channel()) is not None:
        end_with_parent(channel)
    enter_launch_folder(os.environ)
    configure_logging()
    configure_heaps()


def is_parent() -> bool:
    """Whether this is BentoML's parent process of a server, which imports the service before it starts the workers."""
    command = click.get_current_context(silent=True)
    return not is_worker() and command is not None and command.info_name in ("serve", "serve-http")


def is_worker() -> bool:
    return server_context.worker_index is not None
