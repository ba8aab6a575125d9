"""Work that stops when its client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")

# The place in a request's scope.
CLIENT = "runtime.client"


class Client:
    """The client of a request, as the connection sees it.

    Attributes:
        refused: the status of the answer that the connection itself gave the client; 0 if it gave none.
    """

    __slots__ = ("_working", "has_left", "refused")

    def __init__(self) -> None:
        self.has_left = False
        self.refused = 0
        self._working: asyncio.Task[Any] | None = None

    def leave(self) -> None:
        """Cancel the work for the client; called by the connection when it is lost."""
        self.has_left = True
        if self._working is not None:
            self._working.cancel()

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Await the work in the running task, or cancel it when the client disconnects.

        Raises:
            ClientDisconnect: the client has disconnected.
        """
        if self.has_left:
            work.close()
            raise ClientDisconnect
        task = self._working = asyncio.current_task()
        try:
            return await work
        except asyncio.CancelledError:
            if not self.has_left or task is None:
                raise
            task.uncancel()
            raise ClientDisconnect from None
        finally:
            self._working = None


def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    """The work, cancelled when the client disconnects; connections of other servers do not tell.

    Raises:
        ClientDisconnect: the client has disconnected.
    """
    client: Client | None = request.scope.get(CLIENT)
    return work if client is None else client.wait_for(work)
