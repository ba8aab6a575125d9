"""Limits on all gRPC calls together: calls, arriving messages, streams, and unread answers.

gRPC reads a message of any length into memory before it tells the server, and keeps an answer in memory until the
client has read it. These limits therefore count the messages that arrive at a time, and the bytes of answers.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, TypeAlias, cast

import grpc

from protocol.http.errors import MessageTimeoutError, ProtocolError
from runners.core.arguments import Arguments
from runners.core.errors import OverloadedError, RunnerError
from runners.core.sent_answers import Release

Context: TypeAlias = "grpc.aio.ServicerContext"

# The most calls of a worker, as a multiple of max_concurrent_requests; many only wait for messages or watch health.
_CALLS = 4
# A message that arrives within this many seconds needs no place for slow ones.
_SOON = 0.25
_RETRY_SECONDS = 1
# Smaller answers are not counted.
_SMALL_BYTES = 16 * 2**10


class Intake:
    """The calls of one worker."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        # The messages that may arrive at a time; a quarter of the places is for messages that have just begun.
        places = max(4, arguments.max_buffered_bytes // arguments.grpc_max_receive_message_length)
        self._free = max(1, places // 4)
        self._slow = places - self._free
        # The messages that have just begun, the oldest first, and the clock that finds those that are slow: one for
        # all, since nearly every message is read before it is due.
        self._begun: dict[_Arriving, None] = {}
        self._clock: asyncio.TimerHandle | None = None
        # The calls whose messages wait to be read, by connection.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._calls = 0
        self._answer_bytes = 0
        # The clocks of the streams, and when each last had a message; the longest idle stream is first.
        self._streams: dict[asyncio.Timeout, float] = {}

    def enter(self) -> Release:
        """Count a call, until the returned function is called.

        Raises:
            OverloadedError: there are too many.
        """
        max_calls = _CALLS * self._arguments.max_concurrent_requests
        if self._calls >= max_calls:
            raise OverloadedError(
                f"the server has {max_calls} calls, {_CALLS} times max_concurrent_requests; try again later",
                _RETRY_SECONDS,
            )
        self._calls += 1
        return self._leave

    def _leave(self) -> None:
        self._calls -= 1

    async def read(self, context: Context) -> bytes | None:
        """The only message of a call; None if its client sends none.

        Raises:
            MessageTimeoutError: the message does not arrive in time.
            OverloadedError: the message arrives slowly, as too many others do.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait_for_turn(context)
        loop = asyncio.get_running_loop()
        arriving = _Arriving(loop.time() + _SOON)
        self._begun[arriving] = None
        if self._clock is None:
            self._clock = loop.call_at(arriving.due, self._find_slow)
        try:
            data = await arriving.read(context)
        finally:
            if arriving.is_slow:
                self._slow += 1
            else:
                self._begun.pop(arriving, None)
                self._end_turn()
        return None if data is grpc.aio.EOF else cast(bytes, data)

    def _find_slow(self) -> None:
        """Give the messages that are due one of the places for slow ones each, while there are any."""
        loop = asyncio.get_running_loop()
        self._clock = None
        for arriving in list(self._begun):
            if arriving.due > loop.time():
                self._clock = loop.call_at(arriving.due, self._find_slow)
                return
            del self._begun[arriving]
            if self._slow:
                self._slow -= 1
                arriving.become_slow(self._arguments.body_timeout)
                self._end_turn()
            else:
                arriving.fail(
                    OverloadedError(
                        "as many messages as the server takes (max_buffered_bytes) arrive slowly; try again later",
                        _RETRY_SECONDS,
                    )
                )

    async def _wait_for_turn(self, context: Context) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(context.peer(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._end_turn()
            raise

    def _end_turn(self) -> None:
        """Let the next connection read a message."""
        while self._waiting:
            connection = next(iter(self._waiting))
            turns = self._waiting.pop(connection)
            turn = turns.popleft()
            if turns:
                self._waiting[connection] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[asyncio.Timeout]:
        """Count a stream, whose messages may arrive slowly.

        Raises:
            OverloadedError: there are too many streams, or the stream is idle and another one needs its place.
        """
        limits = self._arguments
        now = asyncio.get_running_loop().time()
        if len(self._streams) >= limits.max_streams:
            longest = next(iter(self._streams))
            if now - self._streams[longest] < limits.timeout_keep_alive:
                raise OverloadedError(
                    f"the server has {len(self._streams)} streams, which is the most it takes (max_streams); "
                    "try again later", _RETRY_SECONDS,
                )  # fmt: skip
            del self._streams[longest]
            longest.reschedule(now)
        try:
            async with asyncio.timeout(None) as clock:
                try:
                    self._streams[clock] = now
                    yield clock
                finally:
                    self._streams.pop(clock, None)
        except TimeoutError:
            raise OverloadedError(
                "nothing has gone over the stream for long, and another needs its place (max_streams)", _RETRY_SECONDS
            ) from None

    def touch(self, stream: asyncio.Timeout) -> None:
        """Note that a message has gone over the stream."""
        if self._streams.pop(stream, None) is not None:
            self._streams[stream] = asyncio.get_running_loop().time()

    def take_answer(self, size: int) -> int:
        """Count the bytes of an answer until its client has read it.

        Returns:
            The counted bytes, which `give_answer` must get.

        Raises:
            OverloadedError: there is no room for it beside other answers.
        """
        if size <= _SMALL_BYTES:
            return 0
        max_bytes = self._arguments.max_buffered_bytes
        if self._answer_bytes and self._answer_bytes + size > max_bytes:
            raise OverloadedError(
                f"answers of {self._answer_bytes} bytes are not read yet; with the {size} of this one they are more "
                f"than the {max_bytes} that the server takes (max_buffered_bytes)", _RETRY_SECONDS,
            )  # fmt: skip
        self._answer_bytes += size
        return size

    def give_answer(self, size: int) -> None:
        self._answer_bytes -= size


class _Arriving:
    """A message that arrives. After 0.25 s it needs one of the places for slow messages."""

    __slots__ = ("_error", "_expiry", "_task", "due")

    def __init__(self, due: float) -> None:
        """
        Args:
            due: when it needs a place, on the event loop's clock.
        """
        self.due = due
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._expiry: asyncio.TimerHandle | None = None
        self._error: ProtocolError | RunnerError | None = None

    @property
    def is_slow(self) -> bool:
        """Whether it has a place."""
        return self._expiry is not None

    async def read(self, context: Context) -> Any:
        """Read it, unless `fail` ends that; asyncio.timeout does the same, but costs more than the rest of a read."""
        try:
            return await context.read()
        except asyncio.CancelledError:
            if self._error is None or self._task.uncancel():
                raise
            raise self._error from None
        finally:
            if self._expiry is not None:
                self._expiry.cancel()

    def become_slow(self, seconds: float) -> None:
        """Note that it has a place, and must have arrived `seconds` after its begin."""
        error = MessageTimeoutError("the message did not arrive in time (body_timeout)")
        self._expiry = asyncio.get_running_loop().call_at(self.due - _SOON + seconds, self.fail, error)

    def fail(self, error: ProtocolError | RunnerError) -> None:
        self._error = error
        self._task.cancel()
