"""BentoML's TLS settings."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from runners.core.arguments import Arguments
from runners.core.certificates import CIPHERS, create_ssl_context
from runners.core.errors import ArgumentsError, one_line


def resolve_ssl(arguments: Arguments) -> dict[str, Any]:
    """BentoML's `ssl`; the files are not read, because a Bento is built on machines that do not have them."""
    if arguments.ssl_certfile is None or arguments.ssl_keyfile is None:
        # BentoML's own --ssl-certfile takes precedence; its default ciphers are too old for current clients.
        return {"enabled": False, "ciphers": CIPHERS}
    files = {"certfile": arguments.ssl_certfile, "keyfile": arguments.ssl_keyfile}
    if arguments.ssl_ca_certs is None:
        return {"enabled": True, **files, "ciphers": CIPHERS}
    clients = {"ca_certs": arguments.ssl_ca_certs, "cert_reqs": ssl.CERT_REQUIRED}
    return {"enabled": True, **files, "ciphers": CIPHERS, **clients}


def check_certificates(arguments: Arguments) -> None:
    """Read the files of the certificate, its key and the authorities; a worker that cannot read them would be
    restarted forever.

    Raises:
        ArgumentsError: a file is missing or wrong.
    """
    certfile, keyfile, ca_certs = arguments.ssl_certfile, arguments.ssl_keyfile, arguments.ssl_ca_certs
    if certfile is None or keyfile is None:
        return
    for name, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile), ("ssl_ca_certs", ca_certs)):
        if path is not None and not Path(path).is_file():
            raise ArgumentsError(f"{name} is {path}, and there is no such file")
    try:
        create_ssl_context(certfile, keyfile, ca_certs)
    except OSError as error:
        raise ArgumentsError(f"{certfile} and {keyfile} cannot be used for TLS: {one_line(error)}") from error
