"""The worker's end of the connection, with the test as the parent."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from typing import Any

import pytest

from runners.core.models import Models
from runners.core.watchdog import Watchdog
from runners.hosting.life.reports import Reports


class OpenGate:
    is_open = True

    def attach_next_server(self, handshake_seconds: float) -> None: ...

    async def open(self) -> None: ...

    async def shut(self) -> None: ...


class QuietWatchdog(Watchdog):
    def __init__(self) -> None: ...

    def check(self) -> bool:
        return False


def refuse(*_: Any) -> Any:
    raise NotImplementedError


async def begin() -> None: ...


async def test_the_connection_outlives_the_reports() -> None:
    """The parent takes its end for that of the worker, which still closes its models then."""
    parent, worker = socket.socketpair()
    reports = Reports(Models((), refuse), QuietWatchdog(), OpenGate(), begin)
    task = asyncio.create_task(reports.run(worker))
    assert json.loads(await asyncio.to_thread(parent.recv, 1000))["open"]
    task.cancel()
    await asyncio.wait([task])
    del task
    gc.collect()
    await asyncio.sleep(0)
    with parent, pytest.raises(BlockingIOError):
        parent.recv(1000, socket.MSG_DONTWAIT)
