"""What a client may send, and how long it may take, over raw sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import psutil
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from protocol.http.middleware.unread_bodies import watch_unread
from runners.core.arguments import Arguments
from runners.core.sent_answers import release_when_sent
from tests.protocol.http.conftest import StartUvicorn, connect, read_all, report, send_all, statuses

MIB = 2**20
GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


def post(body: bytes, headers: bytes = b"", path: bytes = b"/", length: int | None = None) -> bytes:
    length = len(body) if length is None else length
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n%s" % (path, length, headers, body)


def chunked(body: bytes, path: bytes = b"/") -> bytes:
    return b"POST " + path + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + body


@pytest.mark.parametrize(
    ("request_bytes", "status", "answer"),
    [
        (b"GET / HTTP/1.1\r\nhost: " + b"a" * 60_000 + b"\r\nconnection: close\r\n\r\n", 200, b"/ 2 0"),
        (b"GET / HTTP/1.1\r\nhost: " + b"a" * 66_000 + b"\r\nconnection: close\r\n\r\n", 431, b"--max_header_bytes"),
        (b"GET / HTTP/1.1\r\nhost: " + b"a" * 64 * MIB, 431, b"larger than the 65536 bytes"),
        (b"GET / HTTP/1.1\r\n" + b"a" * 64 * MIB, 431, b"--max_header_bytes"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 250 + b"connection: close\r\n\r\n", 200, b"/ 251 0"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 257 + b"\r\n", 431, b"257 headers are more than the 256"),
        (b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 2_000_000 + b"\r\n", 431, b"--max_header_bytes"),
        (b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nconnection: close\r\n\r\n", 200, b"a 1 0"),
        (b"GET /" + b"a" * 8200 + b" HTTP/1.1\r\nconnection: close\r\n\r\n", 414, b"--max_url_bytes"),
        (b"GET /?" + b"&" * 64 * MIB, 414, b"the 8192 bytes"),
        (b"\r\n" * 33_000, 431, b"--max_header_bytes"),
        (b"\r\n" * 20 + LAST, 200, b"/last 2 0"),
        (b"nonsense\r\n\r\n", 400, b"this is not HTTP/1.1"),
        (b"GET http:// HTTP/1.1\r\n\r\n", 400, b"this is not HTTP/1.1"),
        (b"GET / HTTP/1.0\r\n\r\n", 200, b"/ 0 0"),
        (post(b"a" * 100_000, b"connection: close\r\n"), 200, b"/ 3 100000"),
        (post(b"a" * 3 * MIB, b"connection: close\r\n"), 200, b"/ 3 3145728"),
        (chunked(b"1\r\na\r\n" * 50_000 + b"0\r\n\r\n") + LAST, 200, b"/ 2 50000"),
        (chunked(b"1;a=b\r\na\r\n0\r\nx-trailer: 1\r\n\r\n") + LAST, 200, b"/ 2 1"),
        (chunked(b"1;" + b"a" * 31 * MIB), 431, b"a chunk's extension or the trailers are larger"),
        (chunked(b"1\r\na\r\n0\r\n" + b"a: b\r\n" * 2_000_000), 431, b"a chunk's extension or the trailers are larger"),
        (chunked(b"1\r\na\r\n0\r\na:" + b"b" * 31 * MIB), 431, b"--max_header_bytes"),
        (chunked(b"nonsense"), 400, b"this is not HTTP/1.1"),
        (b"GET / HTTP/1.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
         b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n" + LAST, 200, b"/ 4 0"),
    ],
)  # fmt: skip
def test_requests(start_uvicorn: StartUvicorn, request_bytes: bytes, status: int, answer: bytes) -> None:
    port = start_uvicorn(header_timeout=2)
    with connect(port) as client:
        send_all(client, request_bytes)
        received = read_all(client)
        assert statuses(received)[0] == status
        assert answer in received
        assert b"\r\nconnection: close\r\n" in received
        if status != 200:
            assert len(statuses(received)) == 1
    with connect(port) as client:
        client.sendall(LAST)
        assert statuses(read_all(client)) == [200]


# What Java's HttpClient sends with its first request: https://www.rfc-editor.org/rfc/rfc7540#section-3.2
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\n"


@pytest.mark.parametrize("pieces", [1, 7, 1000, 100_000])
@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (post(b"", H2C), b"/ 5 0"),
        (post(b"a" * 100, H2C), b"/ 5 100"),
        (post(b"a" * 20_000, H2C), b"/ 5 20000"),
        (chunked(b"3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n").replace(b"host: x\r\n", b"host: x\r\n" + H2C), b"/ 5 4"),
        (GET.replace(b"host: x\r\n", b"host: x\r\n" + H2C), b"/ 4 0"),
    ],
)
def test_an_offer_of_http2_is_answered_as_if_there_were_none(
    start_uvicorn: StartUvicorn, request_bytes: bytes, answer: bytes, pieces: int
) -> None:
    with connect(start_uvicorn()) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send_all(client, request_bytes + request_bytes + post(b"b" * 7) + LAST, pieces)
        received = read_all(client)
    assert statuses(received) == [200, 200, 200, 200]
    assert received.count(answer) == 2
    assert b"/ 2 7" in received


@pytest.mark.parametrize("pieces", [1, 7, 1000, 100_000])
def test_requests_that_come_in_pieces(start_uvicorn: StartUvicorn, pieces: int) -> None:
    """The size of the pieces makes no difference."""
    port = start_uvicorn()
    requests = GET + post(b"a" * 100) + chunked(b"3\r\nabc\r\n0\r\n\r\n") + LAST
    with connect(port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        send_all(client, requests, pieces)
        received = read_all(client)
    assert statuses(received) == [200, 200, 200, 200]
    assert received.index(b"/ 1 0") < received.index(b"/ 2 100") < received.index(b"/ 2 3") < received.index(b"/last")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", None),
        (b"GET", 408),
        (b"GET / HTTP/1.1\r\nhost: ", 408),
        (post(b"a", length=100), 408),
        (chunked(b""), 408),
        (chunked(b"5\r\na"), 408),
        (post(b"a", length=100, path=b"/early"), 200),
        (GET, 200),
        (GET + b"GET / HT", 200),
        (post(b"", b"expect: 100-continue\r\n", length=100), 100),
    ],
)
def test_whoever_stops_to_send_is_left(start_uvicorn: StartUvicorn, sent: bytes, status: int | None) -> None:
    port = start_uvicorn(header_timeout=0.2, body_timeout=0.2, timeout_keep_alive=1)
    with connect(port) as client:
        client.sendall(sent)
        received = read_all(client)
    assert statuses(received)[:1] == ([] if status is None else [status])


def test_headers_that_trickle_are_refused(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(header_timeout=0.3)
    with connect(port) as client:
        for byte in b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100:
            try:
                client.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.01)
        assert statuses(read_all(client)) == [408]


def test_a_body_that_trickles_is_refused_and_one_that_progresses_is_not(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(body_timeout=0.5)
    with connect(port) as slow, connect(port) as fast:
        slow.sendall(post(b"", length=10_000_000))
        fast.sendall(post(b"", b"connection: close\r\n", length=40 * 70_000))
        for _ in range(40):
            fast.sendall(b"a" * 70_000)
            send_all(slow, b"a")
            time.sleep(0.05)
        assert statuses(read_all(fast)) == [200]
        assert statuses(read_all(slow)) == [408]


def test_a_client_that_reads_nothing_is_left_and_a_slow_one_is_not(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(answer_timeout=0.5)
    with connect(port) as slow, connect(port) as stuck:
        for client in (slow, stuck):
            client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = 0
        while chunk := slow.recv(MIB):
            received += len(chunk)
            time.sleep(0.02)
        assert received > 64 * MIB
        assert len(read_all(stuck)) < 64 * MIB


def test_where_too_much_is_unread_whoever_reads_least_is_left(start_uvicorn: StartUvicorn) -> None:
    """Two answers of 64 MiB, where four times 20 may be unread."""
    port = start_uvicorn(max_buffered_bytes=20 * MIB, header_timeout=1)
    with contextlib.ExitStack() as stack:
        stuck, slow = stack.enter_context(connect(port)), stack.enter_context(connect(port))
        stuck.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        time.sleep(0.3)
        slow.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        received = 0
        while chunk := slow.recv(MIB):
            received += len(chunk)
            time.sleep(0.02)
        assert received > 64 * MIB
        assert len(read_all(stuck)) < 64 * MIB


class Reader(asyncio.Transport):
    """A connection whose client reads some bytes a second, once the kernel's buffers are full."""

    def __init__(self, a_second: int) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.a_second = a_second
        self.unsent = 0
        self.aborted = False

    def read(self) -> None:
        self.unsent = max(0, self.unsent - self.a_second)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.unsent += len(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


def accept(table: ConnectionTable, reader: Reader, application: Any) -> BoundedHttpProtocol:
    config = uvicorn.Config(application, lifespan="off", log_level="critical")
    config.load()
    connection = BoundedHttpProtocol(table, config, ServerState(), {})
    connection.connection_made(reader)
    return connection


@pytest.mark.parametrize(
    ("a_second", "size", "left"),
    [
        (0, MIB, True),
        (1, MIB, True),
        (1000, MIB, True),
        (2000, MIB, False),
        # The rest of it, less than 64 KiB.
        (1, 1000, True),
        (100, 1000, False),
        (MIB, MIB, False),
    ],
)
async def test_progress_of_an_answer_is_64_kib_or_its_end(a_second: int, size: int, left: bool) -> None:
    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    reader = Reader(a_second)
    connection = accept(ConnectionTable(Arguments(answer_timeout=60, timeout_keep_alive=1000), ""), reader, application)
    connection.data_received(GET)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    seconds = 0
    while reader.unsent and not reader.aborted:
        connection.check(connection.loop.time() + seconds)
        reader.read()
        seconds += 1
    assert reader.aborted == left
    assert seconds == 61 or not left


def test_a_stream_in_which_nothing_comes_for_long_stays(start_uvicorn: StartUvicorn) -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
            await asyncio.sleep(0.6)
        await send({"type": "http.response.body"})

    with connect(start_uvicorn(stream, answer_timeout=0.2)) as client:
        client.sendall(LAST)
        assert read_all(client).count(b"event") == 3


@pytest.mark.parametrize("reads", [True, False], ids=["it is read", "its client leaves"])
def test_what_an_answer_holds_is_given_back_once_it_is_sent(start_uvicorn: StartUvicorn, reads: bool) -> None:
    released = threading.Event()
    answered = threading.Event()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        release_when_sent(released.set)
        await report(scope, receive, send)
        answered.set()

    with connect(start_uvicorn(application)) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answered.wait(20)
        assert not released.wait(0.2), "nothing is read yet"
        if reads:
            assert len(read_all(client)) > 64 * MIB
    assert released.wait(20)


def test_a_connection_that_is_used_stays_open(start_uvicorn: StartUvicorn) -> None:
    """Every request starts the time anew."""
    port = start_uvicorn(timeout_keep_alive=1, header_timeout=0.3)
    with connect(port) as client:
        for _ in range(5):
            client.sendall(GET)
            assert statuses(client.recv(65536)) == [200]
            time.sleep(0.5)


@pytest.mark.parametrize(("configured", "stays"), [(5, True), (1, False)])
def test_the_operators_keep_alive_is_stronger(start_uvicorn: StartUvicorn, configured: int, stays: bool) -> None:
    """BentoML's default of 5 s is not told from a 5 s that was asked for."""
    port = start_uvicorn(config={"timeout_keep_alive": configured}, timeout_keep_alive=60, header_timeout=0.4)
    with connect(port) as client:
        client.sendall(GET)
        assert client.recv(65536)
        client.settimeout(2)
        if stays:
            with pytest.raises(TimeoutError):
                client.recv(65536)
        else:
            assert client.recv(65536) == b""


def test_pipelined_requests_are_answered_in_order(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn()
    with connect(port) as client:
        client.sendall(
            b"GET /slow HTTP/1.1\r\n\r\n"
            + b"".join(b"GET /%d HTTP/1.1\r\n\r\n" % number for number in range(50))
            + LAST
        )
        received = read_all(client)
    assert statuses(received) == [200] * 52
    found = [received.index(b"/%d 0 0" % number) for number in range(50)]
    assert found == sorted(found)


@pytest.mark.parametrize(
    "rest", [b"GET / HTTP/1.1\r\n\r\n" * 1000, GET + b"nonsense\r\n\r\n", b"GET /" + b"a" * 10_000]
)
def test_what_follows_too_much_or_wrong_is_refused_once_the_rest_is_answered(
    start_uvicorn: StartUvicorn, rest: bytes
) -> None:
    port = start_uvicorn()
    with connect(port) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\n\r\n" + rest)
        received = read_all(client)
    assert set(statuses(received)) == {200}
    assert received.startswith(b"HTTP/1.1 200")
    assert 1 <= len(statuses(received)) <= 66
    assert received.count(b"connection: close") == 1
    assert b"connection: close" in received[received.rindex(b"HTTP/1.1") :]


def test_a_body_that_ends_in_nonsense_while_it_is_read(start_uvicorn: StartUvicorn) -> None:
    """The request is refused; the application is told that its client is gone."""
    port = start_uvicorn()
    with connect(port) as client:
        client.sendall(chunked(b"1\r\na\r\n"))
        time.sleep(0.1)
        client.sendall(b"nonsense")
        assert statuses(read_all(client)) == [400]


def test_bodies_that_nobody_reads_and_that_do_not_end_take_no_memory(start_uvicorn: StartUvicorn) -> None:
    """The answer comes first; what still comes is thrown away, and the connections end with their time-out."""

    async def drain(scope: Scope, receive: Receive, send: Send) -> None:
        await report(scope, *watch_unread(scope, receive, send))

    port = start_uvicorn(drain, body_timeout=1)
    process = psutil.Process()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(20)]
        before = process.memory_info().rss
        for client in clients:
            client.settimeout(20)
            send_all(client, post(bytes(16 * MIB), path=b"/early", length=32 * MIB))
        assert process.memory_info().rss - before < 100 * MIB
        assert [statuses(read_all(client)) for client in clients] == [[200]] * 20
