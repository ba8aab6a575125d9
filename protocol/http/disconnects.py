"""Work that stops when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def until_disconnect(request: Request, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine, or cancel it when the client disconnects.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    work = asyncio.ensure_future(coroutine)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    watch.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        watch.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
