"""The stand-in in the test's event loop, or in a thread, and real clients of the port."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from runners.core.arguments import Arguments
from runners.hosting.life import stand_in as stand_in_module
from runners.hosting.life.stand_in import StandIn

REQUEST = b"GET /v1/models HTTP/1.1\r\n\r\n"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=2000) as made:
        made.setblocking(False)
        yield made


@pytest.fixture
def tls(tmp_path: Path) -> Arguments:
    """Arguments with a certificate, which is in certificate.pem."""
    certificate = trustme.CA().issue_cert("127.0.0.1")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    return Arguments(ssl_certfile=str(files[0]), ssl_keyfile=str(files[1]))


def connect(listener: socket.socket) -> socket.socket:
    return socket.create_connection(listener.getsockname(), timeout=10)


def find_backlog(listener: socket.socket) -> int:
    """tcpi_sacked of a listening socket."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    backlog: int = struct.unpack("8B6I", info)[-1]
    return backlog


async def test_the_backlog_of_the_shared_socket_stays(listener: socket.socket) -> None:
    before = find_backlog(listener)
    assert before > 100
    stand_in = StandIn(listener, Arguments())
    stand_in.set_open(True)
    await asyncio.sleep(0)
    assert find_backlog(listener) == before
    stand_in.set_open(False)


async def test_a_connection_that_was_accepted_is_answered_after_the_end(listener: socket.socket) -> None:
    stand_in = StandIn(listener, Arguments())
    stand_in.set_open(True)
    waker, woken = socket.socketpair()
    with waker, woken, connect(listener) as client:
        asyncio.get_running_loop().add_reader(woken, stand_in.set_open, False)
        # Both events come in one iteration of the event loop.
        waker.send(b"x")
        client.sendall(REQUEST)
        assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 503 ")
        asyncio.get_running_loop().remove_reader(woken)


async def test_connections_that_begin_no_handshake_are_few_and_end(
    listener: socket.socket, tls: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in_module, "_MOST_CONNECTIONS", 2)
    monkeypatch.setattr(stand_in_module, "_READ_SECONDS", 1.0)
    stand_in = StandIn(listener, tls)
    stand_in.set_open(True)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(listener)) for _ in range(3)]
        started = asyncio.get_running_loop().time()
        seconds = []
        for client in reversed(clients):
            assert await asyncio.to_thread(client.recv, 100) == b""
            seconds.append(asyncio.get_running_loop().time() - started)
    assert seconds[0] < 0.9 < seconds[1] < seconds[2] + 0.1 < 10
    stand_in.set_open(False)


async def test_no_descriptor_is_free(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, the event loop does not spin, and the next attempt finds one."""
    stand_in = StandIn(listener, Arguments())

    def fail(_: socket.socket) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(stand_in_module, "duplicate_listener", fail)
        stand_in.set_open(True)
        assert not stand_in.is_open
    with monkeypatch.context() as patch, connect(listener):
        patch.setattr(socket.socket, "accept", fail)
        stand_in.set_open(True)
        assert stand_in.is_open
        await asyncio.sleep(0.1)
        assert not stand_in.is_open
    line = "clients get no answer while no worker serves: [Errno 24] too many open files"
    assert [record.getMessage() for record in caplog.records] == [line]
    stand_in.set_open(True)
    with connect(listener) as client:
        client.sendall(REQUEST)
        assert (await asyncio.to_thread(client.recv, 100)).startswith(b"HTTP/1.1 503 ")
    stand_in.set_open(False)


async def test_broken_files_of_the_certificate_do_not_shut_the_port(
    listener: socket.socket, tls: Arguments, tmp_path: Path
) -> None:
    stand_in = StandIn(listener, tls)
    stand_in.set_open(True)
    stand_in.set_open(False)
    (tmp_path / "certificate.pem").write_text("not a certificate")
    stand_in.set_open(True)
    assert stand_in.is_open
    assert await asyncio.to_thread(shake_hands, listener) is not None
    stand_in.set_open(False)


def shake_hands(listener: socket.socket) -> str | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with connect(listener) as client, context.wrap_socket(client) as secured:
        return secured.version()
