"""A worker process, from its start to its end."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, field
from types import FrameType

from starlette.types import ASGIApp

from runners.core.admission import DRAIN_SECONDS
from runners.core.argument_sources import forget_keys
from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.model_metrics import keep_writing, write_metrics
from runners.core.models import Models
from runners.hosting.change_client import ChangeClient
from runners.hosting.change_server import SOCKET_VARIABLE
from runners.hosting.failures import Listener, exit_when_dead, load_or_exit, start_or_exit, stop_on_error
from runners.hosting.idle_memory import release_memory
from runners.hosting.logs import server_log


@dataclass(slots=True)
class Worker:
    """The models of a worker, and the protocols that serve them.

    Attributes:
        device: runs the models that run in this process.
        application: serves HTTP.
        listener: the gRPC server; None if gRPC is disabled.
    """

    models: Models
    device: DeviceThread
    arguments: Arguments
    application: ASGIApp
    listener: Listener | None
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def start(self) -> None:
        """Start the listener, and load the models in the background; the whole server ends if either fails."""
        # The parent process keeps them for workers that it starts later.
        forget_keys(os.environ)
        server_log.observe_requests(self.arguments)
        if self.listener is not None:
            await start_or_exit(self.listener)
        serves_others = self.arguments.on_load_failure == "serve_others"
        if (path := os.environ.get(SOCKET_VARIABLE)) is not None:
            with stop_on_error():
                changes = await ChangeClient.connect(path, self.models)
            self._tasks.append(asyncio.create_task(changes.run()))
            # The other workers go on, whatever has become of a model's files meanwhile.
            serves_others = serves_others or changes.is_replacement
        releasing = release_memory(lambda: self.models.loaded, lambda: self.models.busy)
        running = (
            load_or_exit(self.models, serves_others),
            exit_when_dead(self.models),
            releasing,
            keep_writing(self.models),
        )
        self._tasks += [asyncio.create_task(each) for each in running]
        self._bound_shutdown()

    async def stop(self) -> None:
        if self.listener is not None:
            await self.listener.stop()
        for task in self._tasks:
            task.cancel()
        write_metrics(self.models)
        await asyncio.to_thread(self.models.close)
        await asyncio.to_thread(self.device.close)

    def _bound_shutdown(self) -> None:
        """On SIGTERM stop the listener, and close the models if requests still run after DRAIN_SECONDS.

        uvicorn waits for the last answer without a limit, but Kubernetes kills the process after 30 s.
        """
        handler = signal.getsignal(signal.SIGTERM)
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            close = self.models.close
            loop.call_soon_threadsafe(loop.call_later, DRAIN_SECONDS, lambda: loop.run_in_executor(None, close))
            if self.listener is not None:
                asyncio.run_coroutine_threadsafe(self.listener.stop(), loop)
            if callable(handler):
                handler(number, frame)

        signal.signal(signal.SIGTERM, handle)
