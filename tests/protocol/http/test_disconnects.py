from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from protocol.http.disconnects import until_disconnect
from runners.core.predictions import Options


class PatientRunner:
    """Never answers, and remembers whether it was cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False

    async def infer(self, *_: Any) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


async def test_a_client_that_goes_cancels_its_work() -> None:
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(messages)

    runner: Any = PatientRunner()
    with pytest.raises(ClientDisconnect):
        await until_disconnect(Request({"type": "http"}, receive), runner.infer([], Options()))
    assert runner.cancelled


async def test_a_cancelled_request_cancels_its_work() -> None:
    async def receive() -> Any:
        await asyncio.Event().wait()

    runner: Any = PatientRunner()
    task = asyncio.create_task(until_disconnect(Request({"type": "http"}, receive), runner.infer([], Options())))
    await runner.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert runner.cancelled
