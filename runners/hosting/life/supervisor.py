"""In the parent process: a thread that knows how each worker is, and decides which of them accept connections.

Workers accept that are ready, or all while none is: those that load a model answer 503, and the probes. The stand-in
answers while no worker does. A worker that has not reported for some seconds is not waited for, and is killed later.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from runners.hosting.life.channel import Message, encode_message
from runners.hosting.life.stand_in import StandIn
from runners.hosting.logs import server_log

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 0.5
# The stand-in answers beside a worker that has not reported for this long.
_SILENT_SECONDS = 5.0
# A worker whose event loop has not run for this long is killed. Loads may hold Python's lock for longer.
FROZEN_SECONDS = 20.0
_FROZEN_LOAD_SECONDS = 600.0


@dataclass(slots=True, eq=False)
class SupervisedWorker:
    """A worker that runs, or has run.

    Attributes:
        reported: when it last reported, on the clock of the loop.
        was_ready: whether it has ever been ready.
        was_frozen: whether it was killed because its event loop had stopped.
        told: what it was last told.
    """

    pid: int
    writer: asyncio.StreamWriter
    reported: float
    ready: bool = False
    live: bool = True
    open: bool = False
    loading: bool = True
    was_ready: bool = False
    was_frozen: bool = False
    told: Message = field(default_factory=dict)

    def read(self, report: Message, now: float) -> None:
        self.ready, self.live, self.open = report["ready"], report["live"], report["open"]
        self.loading, self.reported = report["loading"], now
        self.was_ready = self.was_ready or self.ready

    def tell(self, message: Message) -> None:
        if message != self.told and not self.writer.is_closing():
            self.told = message
            self.writer.write(encode_message(message))


class Supervisor:
    """The workers of this server."""

    def __init__(self, stand_in: StandIn, on_death: Callable[[SupervisedWorker], None]) -> None:
        """
        Args:
            on_death: called in this thread with a worker that has ended.
        """
        self._stand_in = stand_in
        self._on_death = on_death
        self._workers: set[SupervisedWorker] = set()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def adopt(self, pid: int, channel: socket.socket) -> None:
        """Watch a worker that has been started."""
        asyncio.run_coroutine_threadsafe(self._watch(pid, channel), self._loop)

    def drain(self) -> None:
        """Note that the server ends: nothing is killed any more."""
        self._stand_in.is_ending = True

    @property
    def pids(self) -> list[int]:
        """The ids of the workers that run."""
        return [worker.pid for worker in self._workers.copy()]

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._check())
        except BaseException:
            logger.exception("the supervisor of the workers has failed, and the server ends")
            # The workers end with this process.
            server_log.end()
            os._exit(1)

    async def _check(self) -> None:
        last = self._loop.time()
        while True:
            self._decide()
            await asyncio.sleep(_CHECK_SECONDS)
            now = self._loop.time()
            # The whole machine, or the container, may have stood still.
            paused = max(0.0, now - last - 2 * _CHECK_SECONDS)
            for worker in self._workers:
                worker.reported += paused
            last = now
            self._kill_frozen()

    async def _watch(self, pid: int, channel: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=channel)
        worker = SupervisedWorker(pid, writer, self._loop.time())
        self._workers.add(worker)
        try:
            while line := await reader.readline():
                worker.read(json.loads(line), self._loop.time())
                self._decide()
        except OSError:
            pass
        finally:
            self._workers.discard(worker)
            writer.close()
            self._on_death(worker)
            self._decide()

    def _decide(self) -> None:
        """Tell each worker whether to accept connections, and open the stand-in if none does."""
        now = self._loop.time()
        heard = [worker for worker in self._workers if now - worker.reported < _SILENT_SECONDS]
        serving = [worker for worker in heard if worker.ready and worker.live]
        is_stuck = not all(worker.live for worker in heard)
        self._stand_in.set_open(not any(worker.open for worker in heard))
        for worker in self._workers:
            worker.tell(
                {
                    "open": worker in serving or not serving,
                    "stuck": is_stuck,
                    "stand_in_is_open": self._stand_in.is_open,
                }
            )

    def _kill_frozen(self) -> None:
        if self._stand_in.is_ending:
            return
        for worker in self._workers:
            limit = _FROZEN_LOAD_SECONDS if worker.loading else FROZEN_SECONDS
            if self._loop.time() - worker.reported > limit and not worker.was_frozen:
                worker.was_frozen = True
                kill_group(worker.pid)


def kill_group(pid: int) -> None:
    """Kill a worker, which BentoML starts in a group of its own, and the processes of its engine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
