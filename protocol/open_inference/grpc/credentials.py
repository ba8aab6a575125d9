"""gRPC's TLS credentials, which are read again when their files change."""

from __future__ import annotations

from pathlib import Path

import grpc

from runners.core.arguments import Arguments
from runners.core.certificates import create_ssl_context
from runners.core.file_watch import FileWatch


def read_grpc_credentials(arguments: Arguments) -> grpc.ServerCredentials | None:
    """The credentials of the gRPC server; None if the arguments name no certificate.

    Raises:
        OSError: a file cannot be read.
    """
    certfile, keyfile, ca_certs = arguments.ssl_certfile, arguments.ssl_keyfile, arguments.ssl_ca_certs
    if certfile is None or keyfile is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        # Raises an error that says which file is wrong; gRPC itself raises none.
        create_ssl_context(certfile, keyfile, ca_certs)
        authorities = None if ca_certs is None else Path(ca_certs).read_bytes()
        pair = (Path(keyfile).read_bytes(), Path(certfile).read_bytes())
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    watch = FileWatch([path for path in (certfile, keyfile, ca_certs) if path is not None])
    watch.has_changed()
    watch.accept()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Called for every handshake; None keeps the current certificate."""
        if not watch.has_changed():
            return None
        watch.accept()
        try:
            return read()
        except OSError:
            # HTTP watches the same files and has logged the reason.
            return None

    return grpc.dynamic_ssl_server_credentials(read(), fetch, require_client_authentication=ca_certs is not None)
