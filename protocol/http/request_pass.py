"""What surrounds every request: one pass, which does only what the request's headers and method ask for."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.http.body_budget import BodyBudget, BodyShare, has_free_body
from protocol.http.headers import first_headers
from protocol.http.middleware.authentication import Access, refuse_without_key
from protocol.http.middleware.cors import Cors
from protocol.http.middleware.request_id import echo_request_id
from protocol.http.middleware.unread_bodies import is_answered, watch_unread
from protocol.http.recording import note_status, noting_status, record_request


class RequestPass:
    """Records, CORS, request ids, unread bodies, the budget of bodies, keys and OPTIONS, around the endpoints.

    Attributes:
        budget: the bytes that all bodies may hold together.
    """

    def __init__(
        self, endpoints: ASGIApp, options: ASGIApp, access: Access, budget: BodyBudget, cors: Cors | None = None
    ) -> None:
        """
        Args:
            options: answers OPTIONS.
            cors: what pages of other origins may do; None if they may do nothing.
        """
        self._cors = cors
        self._endpoints = endpoints
        self._options = options
        self._access = access if access.asks_clients else None
        self.budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._endpoints(scope, receive, send)
        else:
            await record_request(self._identify, scope, receive, send)

    async def _identify(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._cors is not None:
            send = self._cors.allowing(scope, send)
        await echo_request_id(self._read_and_answer, scope, receive, send)

    async def _read_and_answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        share: BodyShare | None = None
        if not has_free_body(first_headers(scope)):
            receive, send = watch_unread(scope, receive, send)
            share = self.budget.open_share(scope)
        try:
            await self._answer(scope, receive, send)
        except Exception:
            # Starlette raises it again after the answer; uvicorn would close the connection without notice.
            if not is_answered(scope):
                raise
        finally:
            if share is not None:
                share.give_back()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "OPTIONS":
            # A browser's preflight has no key.
            preflight = None if self._cors is None else self._cors.answer_preflight(scope)
            await (preflight or self._options)(scope, receive, noting_status(send))
        elif self._access is not None and (refusal := await refuse_without_key(scope, self._access)) is not None:
            note_status(refusal.status_code)
            await refusal(scope, receive, send)
        else:
            await self._endpoints(scope, receive, send)
