"""Object stores for the tests: S3 by moto's server, and an HTTP server of archives."""

from __future__ import annotations

import io
import logging
import re
import ssl
import stat
import tarfile
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import boto3
from moto.server import ThreadedMotoServer

BUCKET = "models"


class ObjectStore(logging.Handler):
    """S3, with the environment that names it; it keeps the names of the objects that were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self._server = ThreadedMotoServer("127.0.0.1", port=0, verbose=True)

    def __enter__(self) -> Self:
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "access",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._client: Any = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", aws_access_key_id="a", aws_secret_access_key="s", region_name="us-east-1"
        )  # fmt: skip
        self._client.create_bucket(Bucket=BUCKET)
        logging.getLogger("werkzeug").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("werkzeug").removeHandler(self)
        self._server.stop()

    def put(self, prefix: str, files: Mapping[str, bytes]) -> str:
        """The URI of new objects."""
        for name, data in files.items():
            self._client.put_object(Bucket=BUCKET, Key=f"{prefix}{name}", Body=data)
        return f"s3://{BUCKET}/{prefix}"

    def emit(self, record: logging.LogRecord) -> None:
        # With colours around some.
        if found := re.search(rf"GET /{BUCKET}/([^? ]+) HTTP", record.getMessage()):
            self.read.append(found[1])


@dataclass
class Web:
    """An HTTP server.

    Attributes:
        files: content type and body by path.
        broken: paths that are cut off in their middle.
        seconds: how long every answer takes to start.
        asked: paths as they were asked for.
        context: of TLS, with a certificate of localhost; None for plain HTTP.
    """

    files: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    seconds: float = 0
    asked: list[str] = field(default_factory=list)
    context: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                web.asked.append(path)
                time.sleep(web.seconds)
                if path not in web.files:
                    self.send_error(403 if path == "/forbidden.zip" else 404)
                    return
                kind, body = web.files[path]
                self.send_response(200)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if path in web.broken else body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if self.context is not None:
            self._server.socket = self.context.wrap_socket(self._server.socket, server_side=True)
            self.url = f"https://localhost:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@dataclass(frozen=True)
class Member:
    """One of an archive.

    Attributes:
        link: where a symbolic link leads; it is one if this is set.
        mode: type and permissions as of `stat`.
        size: what is declared in place of what is there.
    """

    name: str
    link: str | None = None
    mode: int = stat.S_IFREG | 0o644
    size: int | None = None

    def at(self, outside: str) -> Member:
        """With a path in place of `{outside}`."""
        link = self.link and self.link.format(outside=outside)
        return replace(self, name=self.name.format(outside=outside), link=link)


_TAR_TYPES = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFIFO: tarfile.FIFOTYPE, stat.S_IFCHR: tarfile.CHRTYPE}


def pack_tar(members: Sequence[Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for member in members:
            header = tarfile.TarInfo(member.name)
            header.type = _TAR_TYPES[stat.S_IFMT(member.mode)] if member.link is None else tarfile.SYMTYPE
            header.mode = member.mode & 0o7777
            header.linkname = member.link or ""
            header.size = member.size or 0
            # Without data, however large it says that it is.
            archive.addfile(header)
    return buffer.getvalue()


def pack_zip(members: Sequence[Member]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in members:
            header = zipfile.ZipInfo(member.name)
            header.external_attr = (member.mode if member.link is None else stat.S_IFLNK | 0o777) << 16
            archive.writestr(header, member.link or "")
            if member.size is not None:
                archive.infolist()[-1].file_size = member.size
    return buffer.getvalue()


def deflated(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def encrypted(archive: bytes) -> bytes:
    """A zip whose members say that they are encrypted."""
    changed = bytearray(archive)
    for found in re.finditer(rb"PK\x01\x02", archive):
        changed[found.start() + 8] |= 1
    return bytes(changed)


def tar(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    return deflated(files, zipfile.ZIP_STORED)
