"""CORS: which web pages of other origins may read answers. https://fetch.spec.whatwg.org/#http-cors-protocol

Browsers ask for it, other clients do not. Who may make a request is a matter of keys: a page gets past none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from protocol.http.headers import first_headers
from runners.core.arguments import Arguments

# Headers of answers that clients read, which pages see only if they are listed.
_EXPOSED = ("Inference-Header-Content-Length", "Metadata", "Retry-After", "X-Request-Id")
_PREFIX = b"access-control-"
_VARY = (b"vary", b"Origin")


@dataclass(frozen=True, slots=True)
class CorsSettings:
    """What pages of other origins may do.

    Attributes:
        origins: the origins, such as https://chat.example.com; `*` for all.
        origin_pattern: a regular expression that further origins match as a whole; None for no further ones.
        methods: the methods, `*` for all.
        headers: the headers that requests may have beside those that need no permission; `*` for all.
        credentials: whether pages may use what the browser keeps for this server, such as certificates and a proxy's
            cookies.
        exposed: the headers of answers that pages may read.
        max_age: how many seconds a browser remembers the answer to a preflight.
    """

    origins: Sequence[str] = ()
    origin_pattern: str | None = None
    methods: Sequence[str] = ("*",)
    headers: Sequence[str] = ("*",)
    credentials: bool = False
    exposed: Sequence[str] = _EXPOSED
    max_age: int = 600


class Cors:
    """Adds the headers for browsers to answers, and answers preflights, by Starlette's rules."""

    def __init__(self, settings: CorsSettings) -> None:
        self._rules = CORSMiddleware(
            _answer_nothing,
            allow_origins=settings.origins,
            allow_methods=settings.methods,
            allow_headers=settings.headers,
            allow_credentials=settings.credentials,
            allow_origin_regex=settings.origin_pattern,
            max_age=settings.max_age,
        )
        self._allows_all = "*" in settings.origins and not settings.credentials
        self._shared: list[tuple[bytes, bytes]] = []
        if settings.exposed:
            self._shared.append((b"access-control-expose-headers", ", ".join(settings.exposed).encode()))
        if settings.credentials:
            self._shared.append((b"access-control-allow-credentials", b"true"))

    def answer_preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser's preflight: 200, or 400 if the page may not; None for another request."""
        return self._rules.preflight_response(Headers(scope=scope)) if _is_preflight(scope) else None

    def allowing(self, scope: Scope, send: Send) -> Send:
        """`send` that adds the headers to an answer; `send` itself where there is nothing to add, as to a preflight's.

        Such headers of BentoML and vLLM are replaced: an answer with two is none to a browser.
        """
        origin = first_headers(scope).get(b"origin")
        if origin is None:
            # A cache must not hand an answer without the header to a page.
            return send if self._allows_all or scope["method"] not in ("GET", "HEAD") else _adding(send, [_VARY])
        if _is_preflight(scope):
            return send
        if self._allows_all:
            return _adding(send, [(b"access-control-allow-origin", b"*"), *self._shared])
        if self._rules.is_allowed_origin(origin.decode("latin-1")):
            return _adding(send, [(b"access-control-allow-origin", origin), *self._shared, _VARY])
        return _adding(send, [_VARY])


def _is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and {b"origin", b"access-control-request-method"} <= first_headers(scope).keys()


def _adding(send: Send, added: list[tuple[bytes, bytes]]) -> Send:
    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            others = [each for each in headers if each != _VARY and not each[0].startswith(_PREFIX)]
            message = {**message, "headers": [*others, *added]}
        await send(message)

    return add


def make_cors(arguments: Arguments, others: Mapping[str, Any] = MappingProxyType({})) -> Cors | None:
    """What the operator allows; None if pages of other origins may do nothing.

    Args:
        others: the settings that are no arguments, by name.
    """
    settings = CorsSettings(
        arguments.allowed_origins,
        methods=arguments.allowed_methods,
        headers=arguments.allowed_headers,
        credentials=arguments.allow_credentials,
        **others,
    )
    return Cors(settings) if settings.origins or settings.origin_pattern else None


async def _answer_nothing(_: Scope, __: Receive, ___: Send) -> None:
    """Starlette's middleware needs an application; only its rules are used."""
