"""gRPC: messages of millions of elements, streams of as many requests, clients that read nothing, raw HTTP/2."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from typing import Any

import grpc

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.attack.case import Attack, Case, Outcomes, Ports, ServerKind
from tests.attack.wire import CLOSED, PENDING, RESET, Plan, exchange

MIB = 2**20
_SERVICE = "/inference.GRPCInferenceService"
REFUSED = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"})
ANSWERED = REFUSED | {"OK"}
ENDED = frozenset({CLOSED, RESET, PENDING})
_SIZE = ("grpc.max_send_message_length", -1)
_ANY_ANSWER = ("grpc.max_receive_message_length", -1)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, which messages are too."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


MODEL = _field(1, b"model")
# A tensor of one text, and what it asks.
_TENSOR = _field(1, b"input-0") + _field(2, b"BYTES") + _field(3, b"\x01")
ASKED = MODEL + _field(5, _TENSOR) + _field(7, b"\x01\0\0\0a")


def call(
    make: Callable[[], bytes], method: str = "ModelInfer", times: int = 1, compressed: bool = False, **metadata: str
) -> Callable[[], Attack]:
    """One message, `times` at once; a name's `_` is a `-` in metadata."""

    def prepare() -> Attack:
        message = make()
        told = tuple((name.replace("_", "-"), value) for name, value in metadata.items())

        def attack(ports: Ports, patience: float) -> Outcomes:
            with _channel(ports, compressed) as channel:
                ask = channel.unary_unary(f"{_SERVICE}/{method}", None, None)
                futures = [ask.future(message, timeout=patience, metadata=told) for _ in range(times)]
                return Counter(future.code().name for future in futures)

        return attack

    return prepare


def stream(requests: Callable[[], Iterator[bytes]], reads: int | None = None) -> Callable[[], Attack]:
    """A stream of requests, of whose responses so many are read, or all."""

    def attack(ports: Ports, patience: float) -> Outcomes:
        with _channel(ports) as channel:
            responses = channel.stream_stream(f"{_SERVICE}/ModelStreamInfer", None, None)(requests(), timeout=patience)
            try:
                for response in islice(responses, reads):
                    messages.ModelStreamInferResponse.FromString(response)
                if reads is None:
                    return Counter([responses.code().name])
                # It stays open, and nobody reads.
                _wait(responses, patience)
                return Counter([PENDING if responses.is_active() else responses.code().name])
            except grpc.RpcError as error:
                return Counter([error.code().name])

    return lambda: attack


def frames(make: Callable[[], list[bytes]], times: int = 1) -> Callable[[], Attack]:
    """Bytes of HTTP/2 after its preface."""

    def prepare() -> Attack:
        plans = [Plan([_PREFACE, *make()], reads=False)] * times

        def attack(ports: Ports, patience: float) -> Outcomes:
            return Counter(each for ended in exchange(ports.grpc, plans, patience) for each in ended)

        return attack

    return prepare


def unfinished(method: str, size: int, connections: int, streams: int) -> Callable[[], Attack]:
    """So many messages of `size` bytes on each connection, as much of each as the server takes, but for their ends."""

    def attack(ports: Ports, patience: float) -> Outcomes:
        with ThreadPoolExecutor(connections) as threads:
            holding = [threads.submit(_hold, ports.grpc, method, size, streams, patience) for _ in range(connections)]
            return Counter(each.result() for each in holding)

    return lambda: attack


def _hold(port: int, method: str, size: int, streams: int, seconds: float) -> str:
    # What may still be sent of each stream: https://www.rfc-editor.org/rfc/rfc9113#section-5.2
    windows = dict.fromkeys([0, *range(1, 2 * streams, 2)], 65535)
    left = dict.fromkeys(range(1, 2 * streams, 2), size + 4)
    buffer = b""
    end = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        try:
            connection.sendall(_PREFACE + frame(4, 1, 0, b""))
            for each in left:
                connection.sendall(frame(1, 4, each, head(method)))
                connection.sendall(frame(0, 0, each, b"\0" + size.to_bytes(4, "big")))
                windows[0], windows[each], left[each] = windows[0] - 5, windows[each] - 5, left[each] - 5
            while time.monotonic() < end:
                for each in left:
                    while (length := min(windows[0], windows[each], left[each], 16384)) > 0:
                        connection.sendall(frame(0, 0, each, bytes(length)))
                        windows[0], windows[each], left[each] = windows[0] - length, windows[each] - length, left[each] - length  # fmt: skip
                connection.settimeout(max(end - time.monotonic(), 0.001))
                if not (data := connection.recv(65536)):
                    return CLOSED
                buffer += data
                while len(buffer) >= 9 and len(buffer) >= (length := 9 + int.from_bytes(buffer[:3], "big")):
                    kind, stream_id, payload = buffer[3], int.from_bytes(buffer[5:9], "big"), buffer[9:length]
                    buffer = buffer[length:]
                    if kind == 8:
                        windows[stream_id] += int.from_bytes(payload, "big")
                    elif kind == 3:
                        left[stream_id] = 0
        except TimeoutError:
            pass
        except ConnectionError:
            return RESET
    return PENDING


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    """https://www.rfc-editor.org/rfc/rfc9113#section-4.1"""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream_id.to_bytes(4, "big") + payload


def literal(name: str, value: str) -> bytes:
    """A header that is in no table: https://www.rfc-editor.org/rfc/rfc7541#section-6.2.2, names of up to 126 letters."""
    return b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def head(method: str) -> bytes:
    """The headers of a call."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "a", "content-type": "application/grpc",
        "te": "trailers",
    }  # fmt: skip
    return b"".join(literal(name, value) for name, value in fields.items())


HEAD = head(f"{_SERVICE}/ModelInfer")
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"")


def _rapid_resets() -> list[bytes]:
    """https://www.cve.org/CVERecord?id=CVE-2023-44487"""
    ids = range(1, 100_001, 2)
    return [b"".join(frame(1, 4, each, HEAD) + frame(3, 0, each, b"\0\0\0\x08") for each in ids)]


def _channel(ports: Ports, compressed: bool = False) -> grpc.Channel:
    return grpc.insecure_channel(
        f"127.0.0.1:{ports.grpc}",
        [_SIZE, _ANY_ANSWER, ("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 64 * MIB)],
        compression=grpc.Compression.Gzip if compressed else grpc.Compression.NoCompression,
    )


def _wait(responses: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while responses.is_active() and time.monotonic() < deadline - 1:
        time.sleep(0.1)


def _amount(name: str, make: Callable[[], bytes], compressed: bool = False, method: str = "ModelInfer") -> Case:
    return Case(f"gRPC: {name}", ServerKind.EMBEDDER, call(make, method, compressed=compressed), REFUSED)


def _case(
    name: str, prepare: Callable[[], Attack], allowed: frozenset[str], patience: float = 20, quick: bool = False
) -> Case:
    return Case(f"gRPC: {name}", ServerKind.EMBEDDER, prepare, allowed, patience, quick)


def _entry(key: bytes) -> bytes:
    return _field(1, key) + _field(2, b"\x08\x01")


AMOUNTS = [
    _amount("4,000,000 empty inputs", lambda: MODEL + _field(5, b"") * 4_000_000),
    _amount("3,900,000 outputs, compressed", lambda: ASKED + _field(6, b"") * 3_900_000, True),
    _amount("600,000 parameters", lambda: ASKED + b"".join(_field(4, _field(1, b"%x" % each)) for each in range(600_000))),
    _amount("1,000,000 parameters of one name", lambda: ASKED + _field(4, _field(1, b"a")) * 1_000_000),
    _amount("4,000,000 empty raw contents", lambda: MODEL + _field(7, b"") * 4_000_000),
    _amount("4,000,000 empty elements", lambda: MODEL + _field(5, _TENSOR + _field(5, _field(8, b"") * 4_000_000))),
    _amount("8,000,000 elements of int64", lambda: MODEL + _field(5, _TENSOR + _field(5, _field(3, b"\1" * 8_000_000)))),
    _amount("8,000,000 dimensions", lambda: MODEL + _field(5, _field(1, b"input-0") + _field(3, b"\1" * 8_000_000))),
    _amount("4,000,000 parameters of an input", lambda: MODEL + _field(5, _TENSOR + _field(4, b"") * 4_000_000)),
    _amount("8 MB of one text of no letters in raw contents", lambda: MODEL + _field(5, _TENSOR) + _field(7, b"\0" * 8_000_000)),
    _amount("name of 8 MB", lambda: MODEL + _field(5, _field(1, b"a" * 8_000_000) + _field(2, b"BYTES"))),
    _amount("datatype of 8 MB", lambda: MODEL + _field(5, _field(1, b"a") + _field(2, b"B" * 8_000_000))),
    _amount("4,000,000 unknown fields", lambda: ASKED + b"\x78\x01" * 4_000_000),
    _amount("groups in groups, 4,000,000", lambda: ASKED + b"\x7b" * 4_000_000),
    _amount("a body that is no message", lambda: b"\xff" * 8_000_000),
    _amount("4,000,000 parameters of load", lambda: MODEL + _field(3, b"") * 4_000_000, method="RepositoryModelLoad"),
    _amount("64 MiB", lambda: ASKED + _field(7, b"\0" * (64 * MIB))),
    _amount("64 MiB, compressed", lambda: ASKED + _field(7, b"\0" * (64 * MIB)), True),
]  # fmt: skip
# What is not of the message is left out; what a load takes it may refuse as such.
_LENIENT = {"4,000,000 unknown fields": ANSWERED, "4,000,000 parameters of load": REFUSED | {"PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"}}  # fmt: skip

CALLS = [
    _case("name of a model of 8 MB", call(lambda: _field(1, b"a" * 8_000_000)), REFUSED | {"NOT_FOUND"}, quick=True),
    _case("8 messages of 4,000,000 empty inputs", call(lambda: MODEL + _field(5, b"") * 4_000_000, times=8), REFUSED, 60),
    _case("2,000 calls at once", call(lambda: ASKED, times=2000), ANSWERED, 30),
    _case("4 MiB of metadata", call(lambda: ASKED, a="a" * (4 * MIB)), REFUSED | {"UNKNOWN", "INTERNAL", "UNAVAILABLE"}, quick=True),
    _case("stream of 100,000 requests", stream(lambda: repeat(ASKED, 100_000)), ANSWERED | {"DEADLINE_EXCEEDED"}, 30),
    _case("stream of 100,000 wrong requests", stream(lambda: repeat(MODEL, 100_000)), ANSWERED | {"DEADLINE_EXCEEDED"}, 30),
    _case("stream of 100,000 requests whose answers nobody reads", stream(lambda: repeat(ASKED, 100_000), reads=1), ANSWERED | {PENDING, "DEADLINE_EXCEEDED", "CANCELLED"}, 15),
    _case("stream of 20 requests of 4,000,000 empty inputs", stream(lambda: repeat(MODEL + _field(5, b"") * 4_000_000, 20)), ANSWERED, 60),
    _case("50,000 streams that are reset at once", frames(_rapid_resets), ENDED, 10),
    _case("headers that go on for 32 MiB", frames(lambda: [frame(1, 0, 1, HEAD), frame(9, 0, 1, literal("a", "b" * 100) * 150) * 2000]), ENDED, 10),
    _case("200 messages of 8 MB that do not end", unfinished(f"{_SERVICE}/ModelInfer", 8_000_000, 20, 10), ENDED, 10),
    _case("200 streams of messages of 8 MB that do not end", unfinished(f"{_SERVICE}/ModelStreamInfer", 8_000_000, 20, 10), ENDED, 10),
    _case("1,000,000 pings", frames(lambda: [frame(6, 0, 0, bytes(8)) * 1_000_000]), ENDED, 10),
    _case("1,000,000 settings", frames(lambda: [frame(4, 0, 0, b"") * 1_000_000]), ENDED, 10),
    _case("1,000,000 empty pieces of a body", frames(lambda: [frame(1, 4, 1, HEAD), frame(0, 0, 1, b"") * 1_000_000]), ENDED, 10),
    _case("1,000 connections that only begin", frames(lambda: [b""], times=1000), ENDED, 5),
]  # fmt: skip

CASES = [
    *(
        Case(case.name, case.served, case.prepare, _LENIENT.get(case.name.removeprefix("gRPC: "), case.allowed))
        for case in AMOUNTS
    ),
    *CALLS,
]
