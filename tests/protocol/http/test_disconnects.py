from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect, Request

from protocol.http.disconnects import CLIENT, Client, until_disconnect


class PatientWork:
    """Never ends, and remembers whether it was cancelled."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.cancelled = False

    async def run(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


def request_of(client: Client) -> Request:
    return Request({"type": "http", CLIENT: client})


async def test_a_client_that_leaves_cancels_its_work() -> None:
    client, work = Client(), PatientWork()
    task = asyncio.create_task(until_disconnect(request_of(client), work.run()))
    await work.started.wait()
    client.leave()
    with pytest.raises(ClientDisconnect):
        await task
    assert work.cancelled
    assert task.cancelling() == 0


async def test_work_for_a_client_that_has_left_does_not_begin() -> None:
    client, work = Client(), PatientWork()
    client.leave()
    with pytest.raises(ClientDisconnect):
        await until_disconnect(request_of(client), work.run())
    assert not work.started.is_set()


async def test_a_cancelled_request_cancels_its_work() -> None:
    client, work = Client(), PatientWork()
    task = asyncio.create_task(until_disconnect(request_of(client), work.run()))
    await work.started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.cancelled


@pytest.mark.parametrize("scope", [{"type": "http"}, {"type": "http", CLIENT: Client()}])
async def test_work_that_ends_first(scope: dict[str, Any]) -> None:
    assert await until_disconnect(Request(scope), asyncio.sleep(0, "done")) == "done"
    if CLIENT in scope:
        # The answer is made; a client that leaves now cancels nothing.
        scope[CLIENT].leave()
        await asyncio.sleep(0)
