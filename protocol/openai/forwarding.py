"""Forwards requests to vLLM's own application, which runs in this process."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from protocol.openai.errors import render_openai_error
from runners.core.request_record import current_record
from runners.core.runner import OpenAIApplication
from runners.core.tracing import engine_headers


class Forwarded(Response):
    """The answer of vLLM's layer for OpenAI's API to a request whose body has been read."""

    def __init__(
        self, application: OpenAIApplication, path: str, body: bytes, characters: int, media_type: str
    ) -> None:
        """
        Args:
            characters: the number of characters of the request's texts.
            media_type: the type of the body.
        """
        self._application = application
        self._path = path
        self._body = body
        self._characters = characters
        self._media_type = media_type.encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes | None = self._body

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        # vLLM's spans are below this server's.
        trace = {name.encode(): value.encode() for name, value in engine_headers(current_record.get()).items()}
        replaced = _BODY_HEADERS | trace.keys()
        headers = [header for header in scope["headers"] if header[0] not in replaced]
        inner = _inner_scope(scope, self._path) | {
            "headers": [*headers, *trace.items(), (b"content-type", self._media_type)],
            # FastAPI's routes for GET refuse HEAD; this server leaves out the body.
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        }
        answer = _FailureHolder(send)
        try:
            await self._application.answer(self._characters, inner, replay, answer.send)
        except Exception as error:
            if answer.is_started or isinstance(error, ClientDisconnect):
                raise
            # vLLM's own answer, which is held, has the error's text, and no number that the log has too.
            await render_openai_error(error)(scope, receive, send)
        else:
            await answer.release()


class _FailureHolder:
    """Sends an answer, but holds one of status 500: the application may raise its error after it."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self.is_started = False

    async def send(self, message: Message) -> None:
        if self._held or message.get("status") == HTTPStatus.INTERNAL_SERVER_ERROR:
            self._held.append(message)
        else:
            self.is_started = True
            await self._send(message)

    async def release(self) -> None:
        """Send what is held."""
        for message in self._held:
            await self._send(message)


def _inner_scope(scope: Scope, path: str) -> dict[str, Any]:
    """The scope as a server makes it: the keys that the outer router adds would mislead the inner one."""
    server_scope = {key: scope[key] for key in _SERVER_KEYS if key in scope}
    return server_scope | {"path": path, "raw_path": path.encode(), "root_path": ""}


_SERVER_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server", "extensions",
)  # fmt: skip
# These headers describe the body as it was sent, before it was decoded.
_BODY_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"})
