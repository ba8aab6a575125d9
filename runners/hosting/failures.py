"""Ends the whole server, with one line that says why, if it cannot start or its model fails.

BentoML itself would print a traceback and restart a failed worker forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol

from runners.core.device_thread import DeviceThread
from runners.core.errors import ArgumentsError, RunnerError
from runners.core.models import Models
from runners.hosting.logs import server_log

logger = logging.getLogger(__name__)

_EXIT_CODE = 1
_CHECK_SECONDS = 1.0


class Listener(Protocol):
    """A server beside BentoML's HTTP server."""

    async def start(self) -> None: ...

    async def stop(self, seconds: float) -> None: ...


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """In BentoML's parent process, or where nothing has started: end with one line on a RunnerError."""
    try:
        yield
    except RunnerError as error:
        server_log.report_end(str(error))
        raise SystemExit(_EXIT_CODE) from None


@contextlib.contextmanager
def stop_on_error() -> Iterator[None]:
    """In a worker: end the whole server with one line on a RunnerError."""
    try:
        yield
    except RunnerError as error:
        _stop_server(str(error))


def watch_for_failed_workers(stop: Callable[[], None]) -> None:
    """In BentoML's parent process: stop the server when a worker reports a failure by SIGUSR1."""

    def handle(_: int, __: FrameType | None) -> None:
        stop()

    signal.signal(signal.SIGUSR1, handle)


async def load_or_exit(models: Models, serves_others: bool) -> None:
    """In a worker: load the models that are to be loaded; end the whole server if one cannot be loaded.

    Args:
        serves_others: whether the server goes on without a model that cannot be loaded, unless it is the only one.
    """
    wanted = [model for model in models if model.is_wanted]
    for model in wanted:
        try:
            await models.load_at_start(model)
        except RunnerError as error:
            model.is_wanted = False
            if not serves_others or not any(other.is_wanted for other in wanted):
                _stop_server(f"cannot serve {model.name}: {error}")
            logger.error("%s is not served: %s", model.name, error)


async def exit_when_dead(models: Models, device: DeviceThread) -> None:
    """In a worker: end the whole server when a model dies, or the device, perhaps while its first model loads."""
    # An engine that dies reports to nobody, so that it must be polled.
    while not (models.failed or device.failed):  # noqa: ASYNC110
        await asyncio.sleep(_CHECK_SECONDS)
    if models.draining:
        # The drain has closed them.
        return
    # Waiting requests are answered with an error first.
    await asyncio.sleep(_CHECK_SECONDS)
    if device.failed:
        _stop_server(f"the thread that runs all models has died: {device.failure}")
    failed = ", ".join(dict.fromkeys(model.name for model in models if model.failed))
    _stop_server(f"the engine that ran {failed} has died")


async def start_or_exit(listener: Listener) -> None:
    """In a worker: start a listener; end the whole server if it fails."""
    try:
        await listener.start()
    except (ArgumentsError, OSError, RuntimeError) as error:
        _stop_server(f"gRPC cannot be served: {' '.join(str(error).split())}")


def _stop_server(reason: str) -> NoReturn:
    if _is_first_failure():
        server_log.report_end(reason)
    # Before the parent ends, which ends the reader of a pipe too.
    server_log.end()
    os.kill(os.getppid(), signal.SIGUSR1)
    os._exit(_EXIT_CODE)


def exit_after_failure() -> None:
    """End this process with the exit code of a failure."""
    server_log.end()
    os._exit(_EXIT_CODE)


def _is_first_failure() -> bool:
    """Whether no other worker of this server has failed yet; workers mostly fail for the same reason."""
    # All workers of this server share this folder.
    mark = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / f"failed-{os.getppid()}"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
