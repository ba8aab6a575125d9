"""In a worker: what happens between SIGTERM and the end of the process.

SIGTERM          not ready any more; requests are still taken, and each answer closes its connection
after the delay  no new connections; gRPC sends GOAWAY; uvicorn waits for the answers under way
after the drain  the models are closed, so that requests under way end with an error
then             connections that are still open are aborted
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from types import FrameType
from typing import Protocol

from runners.core.argument_groups import LifeCycleArguments
from runners.core.models import Models
from runners.hosting.failures import Listener
from runners.hosting.life.reports import Reports
from runners.hosting.life.signals import STOP_SIGNALS

logger = logging.getLogger(__name__)

# Clients get this long to read their last answers or errors.
_LAST_ANSWERS_SECONDS = 2.0

_Handler = Callable[[int, FrameType | None], object]


class Connections(Protocol):
    """The HTTP connections of a worker."""

    draining: bool

    def abort_all(self) -> None: ...


class Drain:
    """The end of a worker."""

    def __init__(
        self,
        models: Models,
        arguments: LifeCycleArguments,
        reports: Reports,
        connections: Connections,
        listener: Listener | None,
    ) -> None:
        self._models = models
        self._arguments = arguments
        self._reports = reports
        self._connections = connections
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()

    def begin_on_signal(self) -> None:
        """Drain on SIGTERM, and let uvicorn's handler stop uvicorn once no more connections are accepted."""
        stop_uvicorn = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            if not self._models.draining:
                self._models.draining = True
                loop.call_soon_threadsafe(self._begin, number, stop_uvicorn)

        # The parent process gets the others too, and sends SIGTERM.
        for number in STOP_SIGNALS:
            signal.signal(number, handle if number == signal.SIGTERM else signal.SIG_IGN)

    async def stop_listener(self) -> None:
        """Let the gRPC server end its calls."""
        if self._listener is not None:
            await self._listener.stop(self._arguments.drain_seconds)

    def _begin(self, number: int, stop_uvicorn: object) -> None:
        task = asyncio.get_running_loop().create_task(self._run(number, stop_uvicorn))
        self._tasks.add(task)

    async def _run(self, number: int, stop_uvicorn: object) -> None:
        self._connections.draining = True
        await asyncio.sleep(self._arguments.shutdown_delay_seconds)
        await self._reports.shut_for_good()
        if callable(stop_uvicorn):
            stop_uvicorn(number, None)
        stopping = asyncio.create_task(self.stop_listener())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(self._arguments.drain_seconds)
            if self._models.busy:
                logger.warning(
                    "requests still run after %g s (--drain_seconds): they end now", self._arguments.drain_seconds
                )
            await asyncio.to_thread(self._models.close)
            await asyncio.sleep(_LAST_ANSWERS_SECONDS)
            self._connections.abort_all()
        await stopping
