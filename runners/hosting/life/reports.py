"""In a worker: tells the parent process how the worker is, and accepts connections when the parent says so."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Protocol

from runners.core.models import Models
from runners.core.watchdog import Watchdog
from runners.hosting.life.channel import Message, encode_message

_CHECK_SECONDS = 0.1
_REPORT_SECONDS = 1.0


class Gate(Protocol):
    """The HTTP port of a worker."""

    @property
    def is_open(self) -> bool: ...

    def attach_next_server(self, handshake_seconds: float) -> None: ...

    async def open(self) -> None: ...

    async def shut(self) -> None: ...


class Reports:
    """The worker's end of the connection to the parent process."""

    def __init__(self, models: Models, watchdog: Watchdog, gate: Gate, begin: Callable[[], Awaitable[None]]) -> None:
        """
        Args:
            begin: called before the gate is opened for the first time.
        """
        self._models = models
        self._watchdog = watchdog
        self._gate = gate
        self._begin = begin
        self._has_begun = self._is_final = False
        self._is_other_stuck = False
        # The parent kills a worker whose connection ends: it stays open while the models are closed, after `run`.
        self._writer: asyncio.StreamWriter | None = None
        models.stand_in_is_open = True

    async def run(self, channel: socket.socket | None) -> None:
        """Report each change, and once a second.

        Args:
            channel: the connection; None without a parent that supervises: then the worker accepts at once.
        """
        if channel is None:
            self._models.stand_in_is_open = False
            await self._open()
            while True:
                self._check()
                await asyncio.sleep(_CHECK_SECONDS)
        reader, self._writer = await asyncio.open_unix_connection(sock=channel)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(reader))
            tasks.create_task(self._report(self._writer))

    async def shut_for_good(self) -> None:
        """Accept no connections any more, whatever the parent says."""
        self._is_final = True
        await self._gate.shut()

    async def _follow(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            message = json.loads(line)
            self._is_other_stuck = message["stuck"]
            self._models.stand_in_is_open = message["stand_in_is_open"]
            if message["open"]:
                await self._open()
            else:
                await self._gate.shut()

    async def _open(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            await self._begin()
        if not self._is_final:
            await self._gate.open()

    async def _report(self, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        last: Message = {}
        sent = loop.time()
        while not writer.is_closing():
            report = self._check()
            if report != last or loop.time() - sent >= _REPORT_SECONDS:
                last, sent = report, loop.time()
                writer.write(encode_message(report))
            await asyncio.sleep(_CHECK_SECONDS)

    def _check(self) -> Message:
        """Ask the watchdog, and tell the models what it says; how this worker is."""
        models = self._models
        is_stuck = self._watchdog.check()
        models.stuck = is_stuck or self._is_other_stuck
        live = not is_stuck and not models.failed
        ready = live and models.serves
        return {"ready": ready, "live": live, "open": self._gate.is_open, "loading": models.loading}


def end_with_parent(channel: socket.socket) -> None:
    """End this worker, and the processes of its engine, when the parent process has ended."""

    def wait() -> None:
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLRDHUP)
        poll.poll()
        if os.getpgrp() == os.getpid():
            # BentoML starts each worker in a group of its own.
            os.killpg(0, signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
