"""The bytes of request bodies that all connections hold together."""

from __future__ import annotations

import threading

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.errors import BodiesTooLargeError

# What a body may always have, so that small requests pass while large bodies have taken everything.
FREE_BYTES = 16 * 2**10
_KEY = "runtime.body_share"


class BoundBodies:
    """Counts the bytes of each body as they come, and gives them back when its request has ended.

    A request whose body is too much gets a 503 where it reads its body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app = app
        self.most = most
        self.left = most
        # Bodies are inflated in a thread.
        self.lock = threading.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = BodyShare(self)
        scope[_KEY] = share

        async def receive_counted() -> Message:
            message = await receive()
            if body := message.get("body"):
                share.take(len(body))
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            share.give_back()


class BodyShare:
    """What one request has taken."""

    __slots__ = ("_budget", "_free", "_taken")

    def __init__(self, budget: BoundBodies) -> None:
        self._budget = budget
        self._free = FREE_BYTES
        self._taken = 0

    def take(self, count: int) -> None:
        """Hold as many bytes more.

        Raises:
            BodiesTooLargeError: there are not as many left.
        """
        if count <= self._free:
            self._free -= count
            return
        count -= self._free
        self._free = 0
        budget = self._budget
        with budget.lock:
            if count > budget.left:
                raise BodiesTooLargeError(budget.most)
            budget.left -= count
            self._taken += count

    def check(self, count: int) -> None:
        """Check that so many bytes more could be held now.

        Raises:
            BodiesTooLargeError: they could not.
        """
        if count - self._free > self._budget.left:
            raise BodiesTooLargeError(self._budget.most)

    def give_back(self) -> None:
        if self._taken:
            with self._budget.lock:
                self._budget.left += self._taken
                self._taken = 0


def get_share(scope: Scope) -> BodyShare | None:
    """The share of a request; None in an application without a budget."""
    share: BodyShare | None = scope.get(_KEY)
    return share
