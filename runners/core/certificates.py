"""The operator's certificate, key and authorities: read again when their files change.

Whoever renews certificates replaces the files; connections made from then on see the new ones, HTTP's and gRPC's.
"""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from runners.core.arguments import Arguments

logger = logging.getLogger(__name__)

# TLS 1.2 with authenticated encryption and forward secrecy; TLS 1.3 has no other suites.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
_LOOK_SECONDS = 1.0


class FileWatch:
    """Tells whether one of some files has changed; it looks once a second at most."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._seen = self._look()
        self._looked = time.monotonic()

    def has_changed(self) -> bool:
        """Whether a file has changed since the last change that this told of."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        seen = self._look()
        changed = None not in seen and seen != self._seen
        self._seen = seen if changed else self._seen
        return changed

    def _look(self) -> list[tuple[int, int, int] | None]:
        return [_describe(path) for path in self._paths]


def _describe(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def create_ssl_context(
    certfile: str,
    keyfile: str,
    ca_certs: str | None,
    ciphers: str | None = CIPHERS,
    client_certificates: int = ssl.CERT_REQUIRED,
) -> ssl.SSLContext:
    """A server's context of TLS 1.2 and 1.3.

    Args:
        ca_certs: the authorities of clients' certificates.
        ciphers: of TLS 1.2, as OpenSSL names them.
        client_certificates: with authorities, whether clients must have a certificate of theirs.

    Raises:
        OSError: a file cannot be read, or is none of its kind (ssl.SSLError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers or CIPHERS)
    # A key with a password would be asked for at the terminal.
    context.load_cert_chain(certfile, keyfile, password="")
    if ca_certs is not None:
        context.verify_mode = ssl.VerifyMode(client_certificates)
        context.load_verify_locations(ca_certs)
        _verify_each_connection(context)
    return context


def _verify_each_connection(context: ssl.SSLContext) -> None:
    """Resume no sessions: the certificate of a resumed one is not verified again."""
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def keep_current(context: ssl.SSLContext, create: Callable[[], ssl.SSLContext], paths: list[str]) -> None:
    """Let each new connection of `context` have what the files say when it is made.

    Args:
        create: makes a context of the files; while it fails, the last one is used.
        paths: the files.
    """
    watch = FileWatch(paths)
    # They may have changed since the context was made of them.
    current = _create(create, paths[0]) or context
    if context.verify_mode == ssl.CERT_REQUIRED:
        _verify_each_connection(context)

    def choose(connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        nonlocal current
        if watch.has_changed() and (changed := _create(create, paths[0])):
            current = changed
            logger.info("the changed certificate %s is used from now on", paths[0])
        if current is not context:
            connection.context = current

    # Called for every handshake, also where the client names no server.
    context.sni_callback = choose


def _create(create: Callable[[], ssl.SSLContext], path: str) -> ssl.SSLContext | None:
    """A context of the files; None where they are broken, which is logged."""
    try:
        return create()
    except OSError as error:
        logger.warning("the changed certificate %s is not used: %s", path, " ".join(str(error).split()))
        return None


def read_grpc_credentials(arguments: Arguments) -> grpc.ServerCredentials | None:
    """What gRPC serves TLS with; None for no TLS.

    Raises:
        OSError: a file cannot be read.
    """
    certfile, keyfile, ca_certs = arguments.ssl_certfile, arguments.ssl_keyfile, arguments.ssl_ca_certs
    if certfile is None or keyfile is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        # gRPC itself says nothing of what is wrong.
        create_ssl_context(certfile, keyfile, ca_certs)
        authorities = None if ca_certs is None else Path(ca_certs).read_bytes()
        pair = (Path(keyfile).read_bytes(), Path(certfile).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    watch = FileWatch([path for path in (certfile, keyfile, ca_certs) if path is not None])

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for every handshake; None leaves what there is."""
        if not watch.has_changed():
            return None
        try:
            return read()
        except OSError:
            # HTTP has logged why.
            return None

    return grpc.dynamic_ssl_server_credentials(read(), fetch, require_client_authentication=ca_certs is not None)
