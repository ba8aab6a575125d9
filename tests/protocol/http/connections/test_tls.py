"""TLS over real handshakes: which clients it takes, and whose certificate they see once the files have changed."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trustme

from protocol.http.connections.gate import Gate
from runners.core.certificates import CIPHERS
from tests.conftest import Certificate, renew
from tests.protocol.http.conftest import StartUvicorn, connect, find_table, read_all, report, statuses
from tests.waiting import wait_until

GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def listen(
    start_uvicorn: StartUvicorn,
    files: Certificate,
    application: Any = report,
    limits: Mapping[str, Any] = {},
    **config: Any,
) -> int:
    options = {"ssl_certfile": str(files.certificate), "ssl_keyfile": str(files.key), "ssl_ciphers": CIPHERS}
    return start_uvicorn(application, options | config, **{"header_timeout": 10, **limits})


def trust(*authorities: Path) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for authority in authorities:
        context.load_verify_locations(authority)
    return context


def ask(port: int, context: ssl.SSLContext) -> list[int]:
    with connect(port) as plain, context.wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(GET)
        return statuses(read_all(client))


def is_answered(port: int, context: ssl.SSLContext) -> bool:
    """Whether client and server trust each other."""
    try:
        return ask(port, context) == [200]
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.mark.parametrize(
    ("version", "ciphers", "takes"),
    [
        (ssl.TLSVersion.TLSv1_3, "DEFAULT", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES256-SHA:ECDHE-RSA-AES256-SHA:AES128-SHA:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1_1, "DEFAULT:@SECLEVEL=0", False),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_clients(
    start_uvicorn: StartUvicorn, files: Certificate, version: ssl.TLSVersion, ciphers: str, takes: bool
) -> None:
    port = listen(start_uvicorn, files)
    context = trust(files.authority)
    context.minimum_version = context.maximum_version = version
    context.set_ciphers(ciphers)
    with contextlib.nullcontext() if takes else pytest.raises(ssl.SSLError):
        assert ask(port, context) == [200]


def test_new_connections_see_a_changed_certificate(
    start_uvicorn: StartUvicorn, files: Certificate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = listen(start_uvicorn, files)
    assert ask(port, trust(files.authority)) == [200]
    old = files.certificate.read_bytes()
    files.certificate.write_text("nonsense")

    def is_noticed() -> bool:
        assert ask(port, trust(files.authority)) == [200]
        return any("is not used" in message for message in caplog.messages)

    wait_until(is_noticed)
    [line] = [message for message in caplog.messages if "is not used" in message]
    assert "\n" not in line
    files.certificate.write_bytes(old)
    with connect(port) as plain, trust(files.authority).wrap_socket(plain, server_hostname="localhost") as held:
        authority = renew(files, tmp_path)
        wait_until(lambda: is_answered(port, trust(authority)))
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, trust(files.authority))
        held.sendall(GET)
        assert statuses(read_all(held)) == [200]


def test_a_certificate_that_changed_before_the_first_connection(
    start_uvicorn: StartUvicorn, files: Certificate, tmp_path: Path
) -> None:
    port = listen(start_uvicorn, files)
    authority = renew(files, tmp_path)
    assert ask(port, trust(authority)) == [200]


def test_clients_that_do_not_end_tls_make_room_at_once(start_uvicorn: StartUvicorn, files: Certificate) -> None:
    """They answer nothing to the server's end, and never read."""
    port = listen(start_uvicorn, files, limits={"max_connections": 3})
    context = trust(files.authority)
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            plain = stack.enter_context(connect(port))
            stack.enter_context(context.wrap_socket(plain, server_hostname="localhost"))
        assert ask(port, context) == [200]
        assert len(find_table()._open) <= 3


def test_a_client_that_does_not_end_tls_after_its_answer_is_left(
    start_uvicorn: StartUvicorn, files: Certificate
) -> None:
    port = listen(start_uvicorn, files)
    with connect(port) as plain, trust(files.authority).wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(GET)
        assert statuses(client.recv(65536)) == [200]
        wait_until(lambda: not find_table()._open)


def test_clients_need_a_certificate_of_the_authorities(
    start_uvicorn: StartUvicorn, files: Certificate, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authorities = tmp_path / "clients.pem"
    authority.cert_pem.write_to_path(authorities)
    port = listen(start_uvicorn, files, ssl_ca_certs=str(authorities), ssl_cert_reqs=ssl.CERT_REQUIRED)
    known, unknown, without = (trust(files.authority) for _ in range(3))
    authority.issue_cert("client").configure_cert(known)
    stranger.issue_cert("client").configure_cert(unknown)
    assert ask(port, known) == [200]
    for context in (unknown, without):
        # TLS 1.3 tells the client so only where it reads.
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            assert ask(port, context) == []
    # The authorities are replaced, as the certificate would be.
    stranger.cert_pem.write_to_path(authorities)
    wait_until(lambda: is_answered(port, unknown))


def test_a_handshake_that_does_not_end_ends(start_uvicorn: StartUvicorn, files: Certificate) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            gate = Gate()
            gate.attach_next_server(0.3)
            await send({"type": "lifespan.startup.complete"})
            await gate.open()
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            await report(scope, receive, send)

    port = listen(start_uvicorn, files, application, lifespan="on")
    with connect(port) as silent:
        assert read_all(silent) == b""
    assert ask(port, trust(files.authority)) == [200]


def test_a_client_that_reads_nothing_is_left_and_a_slow_one_is_not(
    start_uvicorn: StartUvicorn, files: Certificate
) -> None:
    options = {"ssl_certfile": str(files.certificate), "ssl_keyfile": str(files.key), "ssl_ciphers": CIPHERS}
    port = start_uvicorn(report, options, answer_timeout=0.5, header_timeout=10)
    context = trust(files.authority)
    large = GET.replace(b"GET /", b"GET /large")
    with contextlib.ExitStack() as stack:
        slow, stuck = (stack.enter_context(context.wrap_socket(stack.enter_context(connect(port)), server_hostname="localhost")) for _ in range(2))  # fmt: skip
        for client in (slow, stuck):
            client.sendall(large)
        received = 0
        with contextlib.suppress(ssl.SSLEOFError):
            while chunk := slow.recv(2**20):
                received += len(chunk)
                time.sleep(0.0002)
        assert received > 64 * 2**20
        left = 0
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while chunk := stuck.recv(2**20):
                left += len(chunk)
        assert left < 64 * 2**20


def test_an_answer_after_which_tls_ends_is_read_to_its_end(start_uvicorn: StartUvicorn, files: Certificate) -> None:
    """Its client pauses for longer than one that does not end TLS may."""
    port = listen(start_uvicorn, files, limits={"header_timeout": 1})
    with connect(port) as plain, trust(files.authority).wrap_socket(plain, server_hostname="localhost") as client:
        client.sendall(GET.replace(b"/ ", b"/large ", 1))
        received = 0
        while chunk := client.recv(2**16):
            received += len(chunk)
            if received % (30 * 2**20) < len(chunk):
                time.sleep(4)
        assert received > 64 * 2**20
