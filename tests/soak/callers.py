"""Callers over HTTP and gRPC: each asks one request at a time, checks the answer, and counts it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import grpc

from tests.soak import grpc_requests, http_requests
from tests.soak.answers import join_messages, strip
from tests.soak.grpc_requests import INFER, STREAM, GrpcRequest
from tests.soak.http_client import Connection, LostError, Response
from tests.soak.http_requests import NUMBER, HttpRequest, with_number
from tests.soak.tally import Tally

# Seconds within which every request must be answered.
ANSWER_SECONDS = 30.0
# What a client that leaves waits at most for what it leaves after.
_LEAVING_SECONDS = 0.05
_NO_ANSWER = frozenset({"DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "UNKNOWN", "INTERNAL"})
_STREAMED_TOKENS = 60


class HttpCaller:
    """A client with a connection that is kept."""

    def __init__(self, port: int, tally: Tally, numbers: Iterator[int], seconds: float = ANSWER_SECONDS) -> None:
        self._port = port
        self._tally = tally
        self._numbers = numbers
        self._seconds = seconds
        self._connection: Connection | None = None

    async def ask(self, request: HttpRequest) -> None:
        """Ask, and count the answer, a wrong answer or none."""
        data, label = with_number(request.data, next(self._numbers))
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                response = await self._exchange(data)
        except (OSError, TimeoutError, ValueError) as error:
            self.close()
            await self._tally.count_unanswered(f"{request.kind}: no answer ({error!r}) to {data[:300]!r}")
            return
        self._tally.count(request.kind, response.status, time.perf_counter() - started)
        if request.closes:
            self.close()
        if response.status not in request.statuses or (
            response.status != 503
            and not request.answers.is_right(response.status, strip(response).replace(label, NUMBER))
        ):
            self._tally.count_wrong(f"{request.kind}: {response.status} {response.body[:300]!r} to {data[:400]!r}")

    async def _exchange(self, data: bytes) -> Response:
        # A server closes an idle connection only after a minute, so that each answer is due.
        if self._connection is None or not self._connection.is_open:
            self._connection = await Connection.open(self._port)
        return await self._connection.ask(data)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class GrpcCaller:
    """A client with a channel of its own."""

    def __init__(self, port: int, tally: Tally, seconds: float = ANSWER_SECONDS) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", own)
        self._tally = tally
        self._seconds = seconds
        self._methods: dict[str, Any] = {STREAM: self._channel.stream_stream(STREAM)}

    async def ask(self, request: GrpcRequest) -> None:
        """Ask, and count the answer, a wrong answer or none."""
        started = time.perf_counter()
        try:
            code, answer = "OK", await (self._stream if request.is_stream else self._call)(request)
        except grpc.aio.AioRpcError as error:
            code, answer = error.code().name, (error.details() or "").encode()
        if code not in request.codes and code in _NO_ANSWER:
            await self._tally.count_unanswered(f"{request.kind}: no answer ({code}: {answer.decode()})")
            return
        self._tally.count(request.kind, code, time.perf_counter() - started)
        if code not in request.codes or (code != "UNAVAILABLE" and not request.answers.is_right(code, answer)):
            self._tally.count_wrong(f"{request.kind}: {code} {answer[:300]!r} to {request.data[0][:300]!r}")

    def start(self, request: GrpcRequest) -> Any:
        """Start a call that may be cancelled."""
        if request.is_stream:
            return self._methods[STREAM](iter(request.data), timeout=self._seconds)
        if request.method not in self._methods:
            self._methods[request.method] = self._channel.unary_unary(request.method)
        return self._methods[request.method](request.data[0], timeout=self._seconds)

    async def _call(self, request: GrpcRequest) -> bytes:
        answer: bytes = await self.start(request)
        return answer

    async def _stream(self, request: GrpcRequest) -> bytes:
        return join_messages([message async for message in self.start(request)])

    async def close(self) -> None:
        await self._channel.close()


class Leaver:
    """Clients that leave, each over a connection of its own."""

    def __init__(self, port: int, grpc_caller: GrpcCaller, tally: Tally, random: Random) -> None:
        self._port = port
        self._grpc = grpc_caller
        self._tally = tally
        self._random = random
        self._plain: Sequence[HttpRequest] = [
            request
            for request in http_requests.make_requests()
            if request.data.startswith(b"POST") and not request.closes
        ]
        self._calls = [request for request in grpc_requests.make_requests() if request.method in (INFER, STREAM)]

    async def leave_before_answer(self) -> None:
        """Send a whole request, and leave a moment later."""
        await self._leave(self._random.choice(self._plain).data, self._random.uniform(0, _LEAVING_SECONDS))

    async def leave_in_body(self) -> None:
        """Send a part of a request, and leave."""
        data = self._random.choice(self._plain).data
        await self._leave(data[: self._random.randrange(1, len(data))], self._random.choice((0, 0.01)))

    async def leave_in_stream(self) -> None:
        """Leave when the first token has come."""
        await self._leave(http_requests.streaming_request(_STREAMED_TOKENS), None)

    async def cancel_call(self) -> None:
        """Cancel a call of gRPC, or a stream, a moment after its start."""
        call = self._grpc.start(self._random.choice(self._calls))
        await asyncio.sleep(self._random.uniform(0, _LEAVING_SECONDS))
        call.cancel()
        self._tally.left += 1

    async def _leave(self, data: bytes, seconds: float | None) -> None:
        """Send data, and leave after so many seconds, or when the first byte has come back."""
        data, _ = with_number(data, self._tally.requests)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                connection = await Connection.open(self._port)
                connection.write(data)
                if seconds is not None:
                    await asyncio.sleep(seconds)
                elif not await connection.wait_for_data():
                    raise LostError("the connection ended before the first token")
        except (OSError, TimeoutError) as error:
            await self._tally.count_unanswered(f"leaving: {error!r}")
            return
        connection.close(reset=self._random.random() < 0.5)
        self._tally.left += 1
