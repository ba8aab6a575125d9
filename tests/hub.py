"""A Hugging Face hub of one model, as much of it as a download asks for."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `owner/model` and its tag v1; `owner/gated` refuses its files.

    Attributes:
        asked: name and Range of every file that was asked for.
        tokens: what requests were authorized by.
        hold: while set, each file of more than a MiB stops after its first half.
    """

    def __init__(self, files: Mapping[str, bytes], context: ssl.SSLContext | None = None) -> None:
        """
        Args:
            context: of TLS, with a certificate of localhost; None for plain HTTP.
        """
        self.files = files
        self.asked: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()
        self.hold = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self)

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.tokens.add(request.headers["authorization"])
        match request.path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", "owner", "model" | "gated"] | ["api", "models", "owner", "model", "revision", "v1"]:
                siblings = [{"rfilename": name, "size": len(data)} for name, data in self.files.items()]
                self._send(request, json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode())
            case ["api", "models", "owner", "model" | "gated", "tree", _]:
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in self.files.items()
                ]
                self._send(request, json.dumps(tree).encode())
            case ["owner", "model", "resolve", revision, *path] if (name := "/".join(path)) in self.files:
                if request.command == "GET":
                    self.asked.append((name, request.headers["range"]))
                headers = {"etag": f'"{_etag(self.files[name])}"', "x-repo-commit": revision}
                self._send(request, self.files[name], headers)
            case ["owner", "gated", "resolve", *_]:
                self._refuse(request, 403, "GatedRepo")
            case ["api", "models", "owner", "model", "revision", _]:
                self._refuse(request, 404, "RevisionNotFound")
            case _:
                self._refuse(request, 401, "RepoNotFound")

    def _send(self, request: BaseHTTPRequestHandler, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        start = int((request.headers["range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        if start:
            request.send_header("content-range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in (headers or {}).items():
            request.send_header(name, value)
        request.send_header("content-length", str(len(body) - start))
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.hold.is_set() and len(body) > 2**20:
            request.wfile.write(body[start : len(body) // 2])
            while self.hold.is_set():
                threading.Event().wait(0.05)
            return
        request.wfile.write(body[start:])

    @staticmethod
    def _refuse(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
        request.send_response(status)
        request.send_header("x-error-code", code)
        request.send_header("content-length", "0")
        request.end_headers()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
