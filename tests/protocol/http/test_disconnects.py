from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from protocol.http.disconnects import until_disconnect
from runners.core.predictions import Options


class PatientRunner:
    """Never answers, and remembers whether it was cancelled."""

    cancelled = False

    async def infer(self, *_: Any) -> Any:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def test_a_client_that_goes_cancels_its_work() -> None:
    async def scenario() -> None:
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            await asyncio.sleep(0)
            return next(messages)

        runner: Any = PatientRunner()
        with pytest.raises(ClientDisconnect):
            await until_disconnect(Request({"type": "http"}, receive), runner.infer([], Options()))
        assert runner.cancelled

    asyncio.run(scenario())


def test_a_cancelled_request_cancels_its_work() -> None:
    async def scenario() -> None:
        async def receive() -> Any:
            await asyncio.sleep(60)

        runner: Any = PatientRunner()
        task = asyncio.create_task(until_disconnect(Request({"type": "http"}, receive), runner.infer([], Options())))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert runner.cancelled

    asyncio.run(scenario())
