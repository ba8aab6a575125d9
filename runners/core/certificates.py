"""TLS with the operator's certificate, private key and authorities, which are read again when their files change.

A tool that renews certificates replaces the files; new connections use the new files, over HTTP and over gRPC.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any

from runners.core.file_watch import FileWatch

logger = logging.getLogger(__name__)

# Suites of TLS 1.2 with authenticated encryption and forward secrecy; all suites of TLS 1.3 have both.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def create_ssl_context(
    certfile: str,
    keyfile: str,
    ca_certs: str | None,
    ciphers: str | None = CIPHERS,
    client_certificates: int = ssl.CERT_REQUIRED,
) -> ssl.SSLContext:
    """A server's context for TLS 1.2 and 1.3.

    Args:
        certfile: the certificate and its chain (PEM).
        keyfile: the private key (PEM).
        ca_certs: the authorities that sign clients' certificates (PEM).
        ciphers: the suites of TLS 1.2, under OpenSSL's names.
        client_certificates: an `ssl.VerifyMode`, used with authorities: whether clients must have a certificate.

    Raises:
        OSError: a file cannot be read, or has another content (ssl.SSLError).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers or CIPHERS)
    # Without a password OpenSSL would ask for that of an encrypted key at the terminal.
    context.load_cert_chain(certfile, keyfile, password="")
    if ca_certs is not None:
        context.verify_mode = ssl.VerifyMode(client_certificates)
        context.load_verify_locations(ca_certs)
        _verify_each_connection(context)
    return context


def _verify_each_connection(context: ssl.SSLContext) -> None:
    """Disable the resumption of sessions, because the certificate of a resumed session is not verified again."""
    context.options |= ssl.OP_NO_TICKET
    context.num_tickets = 0


def keep_current(context: ssl.SSLContext, create: Callable[[], ssl.SSLContext], paths: list[str]) -> None:
    """Make each new connection of `context` use the files as they are at that time.

    Args:
        create: makes a context of the files; while it fails, the previous context is used.
        paths: the files; the first is the certificate.
    """
    watch = FileWatch(paths)
    watch.has_changed()
    watch.accept()
    # The files may have changed since `context` was made of them.
    current = _create(create, paths[0]) or context
    if context.verify_mode == ssl.CERT_REQUIRED:
        _verify_each_connection(context)

    def choose(connection: Any, _: str | None, __: ssl.SSLContext) -> None:
        nonlocal current
        if watch.has_changed():
            watch.accept()
            if (changed := _create(create, paths[0])) is not None:
                current = changed
                logger.info("the changed certificate %s is used from now on", paths[0])
        if current is not context:
            connection.context = current

    # OpenSSL calls it for every handshake, even if the client names no server.
    context.sni_callback = choose


def _create(create: Callable[[], ssl.SSLContext], path: str) -> ssl.SSLContext | None:
    """A context of the files; None, and a line in the log, if they are broken."""
    try:
        return create()
    except OSError as error:
        logger.warning("the changed certificate %s is not used: %s", path, " ".join(str(error).split()))
        return None
