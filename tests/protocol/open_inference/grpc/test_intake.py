"""What clients that send too much, or nothing, or that leave, get over gRPC, and what the others notice of it."""

from __future__ import annotations

import contextlib
import gc
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.attack.cases_grpc import ASKED, frame, head
from tests.conftest import Dial, ModelFolder, Serve
from tests.served import Served
from tests.waiting import wait_until

SERVICE = "/inference.GRPCInferenceService"
INFER, STREAM, WATCH, REFLECT = (
    f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelStreamInfer", "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)  # fmt: skip
# A connection's first bytes, and that it acknowledges the server's settings.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(4, 1, 0, b"")


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, serve: Serve) -> Served:
    return serve(model_dir=model_folder("bert", "sequence_classification"))


@pytest.fixture(scope="module")
def channel(served: Served, dial: Dial) -> grpc.Channel:
    return dial(served)


def is_live(channel: grpc.Channel, wait: bool = False) -> bool:
    """Whether the server answers over it; `wait` for it to take the connection."""
    call = channel.unary_unary(f"{SERVICE}/ServerLive", None, messages.ServerLiveResponse.FromString)
    answer = call(b"", timeout=10, wait_for_ready=wait)
    return bool(answer.live)


def another(channel: grpc.Channel) -> grpc.Channel:
    """A channel to the same server, over a connection of its own."""
    return grpc.insecure_channel(channel._channel.target().decode(), [("grpc.use_local_subchannel_pool", 1)])


def connect(channel: grpc.Channel, data: bytes) -> socket.socket:
    port = int(channel._channel.target().decode().rpartition(":")[2])
    connection = socket.create_connection(("localhost", port), 10)
    connection.sendall(data)
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes it, within ten seconds."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def begin(channel: grpc.Channel, method: str = INFER) -> Any:
    """A call whose message does not come, until it is cancelled."""
    over = threading.Event()

    def nothing() -> Iterator[bytes]:
        over.wait()
        yield from ()

    call = channel.stream_unary(method, None, None).future(nothing())
    call.add_callback(over.set)
    return call


def code(call: Any) -> str:
    return f"{call.code().name}: {call.details()}"


def test_more_calls_than_a_connection_may_have_wait(served: Served, dial: Dial) -> None:
    channel = dial(served, max_concurrent_requests=8)
    live = channel.unary_unary(f"{SERVICE}/ServerLive", None, None)
    calls = [live.future(b"", timeout=30) for _ in range(1000)]
    assert Counter(call.code().name for call in calls) == {"OK": 1000}


def test_a_message_must_come_in_time(served: Served, dial: Dial) -> None:
    channel = dial(served, body_timeout=0.5)
    calls = []
    for _ in range(3):
        calls.append(begin(channel))
        # Each is due later than the one before.
        time.sleep(0.1)
    assert [code(call) for call in calls] == [
        "DEADLINE_EXCEEDED: the message did not arrive in time (body_timeout)"
    ] * 3


def test_slow_messages_have_places_of_their_own(served: Served, dial: Dial) -> None:
    """Four messages may arrive at a time, of which three are slow; what is quick is answered all the same."""
    channel = dial(served, max_buffered_bytes=1)
    calls = [begin(channel) for _ in range(6)]
    assert is_live(another(channel))
    wait_until(lambda: sum(call.done() for call in calls) >= 3)
    refused = [code(call) for call in calls if call.done()]
    assert refused == ["RESOURCE_EXHAUSTED: as many messages as the server takes (max_buffered_bytes) arrive slowly; try again later"] * 3  # fmt: skip
    for call in calls:
        call.cancel()
    assert is_live(channel)


def test_calls_are_bounded_together(served: Served, dial: Dial) -> None:
    channel = dial(served, max_concurrent_requests=1)
    channels = [another(channel) for _ in range(5)]
    calls = [begin(each) for each in channels]
    wait_until(lambda: any(call.done() for call in calls))
    [refused] = [code(call) for call in calls if call.done()]
    assert refused == "RESOURCE_EXHAUSTED: the server has 4 calls, 4 times max_concurrent_requests; try again later"
    for call in calls:
        call.cancel()
    assert is_live(channel)


def open_stream(channel: grpc.Channel) -> Any:
    """A stream that is not ended, with an answer to its first request."""

    def requests() -> Iterator[bytes]:
        yield ASKED
        threading.Event().wait(20)

    responses = channel.stream_stream(STREAM, None, None)(requests())
    with contextlib.suppress(grpc.RpcError):
        next(responses)
    return responses


def test_a_stream_that_idles_gives_its_place_to_another(served: Served, dial: Dial) -> None:
    channel = dial(served, max_streams=1, timeout_keep_alive=1)
    idle = open_stream(channel)
    assert code(open_stream(channel)).startswith("RESOURCE_EXHAUSTED: the server has 1 streams, which is the most")
    # The time that a stream may idle.
    time.sleep(1.2)
    new = open_stream(channel)
    assert code(idle).startswith("RESOURCE_EXHAUSTED: nothing has gone over the stream for long")
    assert new.is_active()
    new.cancel()


def test_answers_that_nobody_reads_are_bounded(served: Served, dial: Dial) -> None:
    channel = dial(served, max_buffered_bytes=100_000)
    request = messages.ModelInferRequest(model_name="model")
    request.inputs.add(name="x", datatype="BYTES", shape=[4096]).contents.bytes_contents.extend([b"a"] * 4096)
    request.outputs.add(name="logits").parameters["binary_data"].bool_param = True
    asked = request.SerializeToString()
    responses = channel.stream_stream(STREAM, None, None)(iter([asked] * 20))
    # Nothing tells that the server has stopped because its buffers are full.
    time.sleep(3)
    answers = [messages.ModelStreamInferResponse.FromString(response) for response in responses]
    errors = {answer.error_message for answer in answers} - {""}
    assert len(answers) == 20
    assert 0 < len(errors) < 20
    assert all("(max_buffered_bytes)" in error for error in errors)
    # They are read, so that there is room again.
    assert channel.unary_unary(INFER, None, None)(asked, timeout=20)


def test_headers_are_counted(served: Served, dial: Dial) -> None:
    call = dial(served).unary_unary(INFER, None, None).future(ASKED, metadata=[("a", "b")] * 300)
    assert "headers are more than the 256 that --max_headers allows" in code(call)


def test_connections_are_bounded(served: Served, dial: Dial) -> None:
    channel = dial(served, max_connections=2)
    held = [connect(channel, PREFACE) for _ in range(2)]
    assert all(connection.recv(9) for connection in held)
    refused = connect(channel, PREFACE)
    assert is_closed(refused)
    held[0].close()
    assert is_live(another(channel), wait=True)


@pytest.mark.parametrize("data", [b"", PREFACE[:10], PREFACE[:24], PREFACE[:33]])
def test_a_handshake_has_a_time_out(served: Served, dial: Dial, data: bytes) -> None:
    assert is_closed(connect(dial(served, header_timeout=1), data))


def test_a_connection_without_calls_is_closed_and_its_client_notices_nothing(served: Served, dial: Dial) -> None:
    channel = dial(served, timeout_keep_alive=1)
    assert is_closed(connect(channel, PREFACE))
    for _ in range(3):
        assert is_live(channel)
        # The time that a connection may idle.
        time.sleep(1.1)


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4, "big") + data


CHECK = message(health_pb2.HealthCheckRequest().SerializeToString())
LIST = message(reflection_pb2.ServerReflectionRequest(list_services="*").SerializeToString())
RESET = frame(3, 0, 1, b"\0\0\0\x08")


@pytest.mark.parametrize(
    ("method", "data"),
    [
        (INFER, b""),
        (INFER, frame(0, 0, 1, message(ASKED)[:10])),
        (INFER, frame(0, 1, 1, message(ASKED)[:10])),
        (INFER, frame(0, 1, 1, b"")),
        (INFER, frame(0, 1, 1, message(ASKED))),
        (STREAM, b""),
        (STREAM, frame(0, 0, 1, message(ASKED) * 20)),
        (STREAM, frame(0, 1, 1, message(ASKED) * 20)),
        (STREAM, frame(0, 0, 1, message(b"\xff") * 20)),
        (WATCH, b""),
        (WATCH, frame(0, 1, 1, CHECK)),
        (REFLECT, frame(0, 0, 1, LIST * 20)),
        (REFLECT, frame(0, 0, 1, message(b"\xff") * 20)),
        ("/nothing/Here", frame(0, 0, 1, message(ASKED))),
    ],
)
@pytest.mark.parametrize("leave", [b"", RESET])
def test_clients_that_leave_are_no_errors(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture, method: str, data: bytes, leave: bytes
) -> None:
    with caplog.at_level(logging.WARNING):
        for wait in (0, 0, 0, 0.002, 0.005, 0.01, 0.02, 0.05):
            connection = connect(channel, PREFACE + frame(1, 4, 1, head(method)) + data)
            # They leave at various moments of the call.
            time.sleep(wait)
            if leave:
                connection.sendall(leave)
            connection.close()
        assert is_live(channel)
        # An error would be logged now.
        time.sleep(0.1)
        gc.collect()
    assert not caplog.records, caplog.text


def test_a_client_that_reads_nothing_and_leaves_is_no_error(
    channel: grpc.Channel, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer that cannot be sent fails before the call is known to be over."""
    requests = b"".join(frame(0, 0, 1, message(ASKED) * 300) for _ in range(4))
    for _ in range(3):
        connection = connect(channel, PREFACE + frame(1, 4, 1, head(STREAM)) + requests)
        # Nothing tells that the answers have filled the buffers, nor that no error is logged afterwards.
        time.sleep(2)
        connection.close()
        time.sleep(0.2)
    assert is_live(channel)
    assert not caplog.records, caplog.text
