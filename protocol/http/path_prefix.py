"""Paths behind a proxy: the prefix that --root_path or X-Forwarded-Prefix names, and a slash at the end."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.http.headers import first_headers
from runners.core.argument_conversion import LONGEST_PREFIX, PREFIX_SEGMENT
from runners.core.url_paths import strip_prefix

# X-Forwarded-Prefix is in the answers of the document and its page, so that caches must tell them apart.
PREFIX_HEADER = "X-Forwarded-Prefix"
_HEADER = PREFIX_HEADER.lower().encode()
_SCOPE_KEY = "huggingface_runtime.root_path"
# As the argument root_path, but of at most 16 segments.
_PREFIX = re.compile(f"{PREFIX_SEGMENT}{{1,16}}")


class PathPrefix:
    """Removes the prefix of --root_path, if a proxy has left it in the path, and one slash at the end of the path.

    So no path is redirected: behind a proxy that ends TLS, a redirect would lead to http:// and to the wrong host.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        """
        Args:
            root_path: such as /models/ner; empty for none.
        """
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            stripped = strip_prefix(path, self._root_path)
            if stripped is not path or self._root_path:
                scope = {**scope, "path": stripped, _SCOPE_KEY: self._root_path}
        await self._app(scope, receive, send)


def find_prefix(scope: Scope) -> str:
    """The prefix of this server's paths as the client sees them, for links in an answer; empty if there is none.

    It is that of --root_path, or else of X-Forwarded-Prefix. Anybody may send that header: it changes nothing but the
    answer to the request that has it, and never which path is served.
    """
    if root_path := scope.get(_SCOPE_KEY):
        return str(root_path)
    value = first_headers(scope).get(_HEADER)
    if value is None or len(value) > LONGEST_PREFIX:
        return ""
    # Each proxy of a chain appends its own.
    prefix = "".join(part.strip().rstrip("/") for part in value.decode("latin-1").split(","))
    return prefix if _PREFIX.fullmatch(prefix) else ""


def ends_with_slash(scope: Scope) -> bool:
    """Whether the path that was asked for ends with a slash."""
    return bool(scope.get("raw_path", b"").endswith(b"/"))
