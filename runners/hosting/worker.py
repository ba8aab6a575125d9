"""A worker process, from its start to its end."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp

from runners.core.argument_sources import forget_keys
from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.model_metrics import keep_writing, write_metrics
from runners.core.models import Models
from runners.core.watchdog import Watchdog, Watched
from runners.hosting.change_client import ChangeClient
from runners.hosting.change_server import SOCKET_VARIABLE
from runners.hosting.failures import Listener, exit_when_dead, load_or_exit, start_or_exit, stop_on_error
from runners.hosting.idle_memory import release_memory
from runners.hosting.life.channel import take_channel
from runners.hosting.life.draining import Connections, Drain
from runners.hosting.life.reports import Gate, Reports
from runners.hosting.logs import server_log
from runners.hosting.tracing.process import start_tracing

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Worker:
    """The models of a worker, and the protocols that serve them.

    Attributes:
        device: runs the models that run in this process.
        application: serves HTTP.
        gate: accepts connections for HTTP.
        connections: those connections.
        listener: the gRPC server; None if gRPC is disabled.
    """

    models: Models
    device: DeviceThread
    arguments: Arguments
    application: ASGIApp
    gate: Gate
    connections: Connections
    listener: Listener | None
    _drain: Drain = field(init=False)
    _reports: Reports = field(init=False)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stop_tracing: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        watchdog = Watchdog(self._list_watched, self.arguments.watchdog_seconds)
        self._reports = Reports(self.models, watchdog, self.gate, self._listen)
        self._drain = Drain(self.models, self.arguments, self._reports, self.connections, self.listener)

    async def start(self) -> None:
        """Load the models in the background, and listen when the parent says so; if one fails, the server ends."""
        # The parent process keeps them for workers that it starts later.
        forget_keys(os.environ)
        with stop_on_error():
            self._stop_tracing = start_tracing(os.environ)
        self.gate.attach_next_server(self.arguments.header_timeout)
        server_log.observe_requests(self.arguments)
        serves_others = self.arguments.on_load_failure == "serve_others"
        if (path := os.environ.get(SOCKET_VARIABLE)) is not None:
            with stop_on_error():
                changes = await ChangeClient.connect(path, self.models)
            self._begin(changes.run())
            # The other workers go on, whatever has become of a model's files meanwhile.
            serves_others = serves_others or changes.is_replacement
        releasing = release_memory(lambda: self.models.loaded, lambda: self.models.busy)
        for work in (
            self._reports.run(take_channel()),
            load_or_exit(self.models, serves_others),
            exit_when_dead(self.models, self.device),
            releasing,
            keep_writing(self.models),
        ):
            self._begin(work)
        self._drain.begin_on_signal()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a background task of this worker until it stops."""
        task = asyncio.create_task(work)
        task.add_done_callback(_log_error)
        self._tasks.append(task)

    async def stop(self) -> None:
        await self._drain.stop_listener()
        for task in self._tasks:
            task.cancel()
        write_metrics(self.models)
        await asyncio.to_thread(self.models.close)
        await asyncio.to_thread(self.device.close)
        if self._stop_tracing is not None:
            await asyncio.to_thread(self._stop_tracing)

    def _list_watched(self) -> Iterator[Watched]:
        yield self.device
        for model in self.models:
            if model.runner is not None and (watched := model.runner.watched) is not None:
                yield watched

    async def _listen(self) -> None:
        if self.listener is not None:
            await start_or_exit(self.listener)


def _log_error(task: asyncio.Task[None]) -> None:
    """Log the error that has ended a task: nobody awaits it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("a background task of this worker has failed", exc_info=error)
