"""The interceptor of all gRPC calls, which reads, counts and decodes messages within limits, and sends answers.

It replaces every handler by one that reads its own messages: gRPC reads the message of a unary call before it calls the
handler.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from protocol.http.errors import ProtocolError, describe_error, grpc_code
from protocol.http.offload import offload_large
from protocol.open_inference.grpc.intake import Context, Intake
from protocol.open_inference.grpc.message_counts import check_message_amounts
from runners.core.errors import GenerationFailedError, InputError, NonFiniteScoresError, RunnerError, without_message
from runners.core.request_limits import RequestLimits
from runners.core.sent_answers import collect_releases, release_all

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Decode: TypeAlias = Callable[[bytes], Awaitable[Any]]

# Decoding more bytes would block the event loop for some ms; elements are smaller than those of JSON.
INLINE_BYTES = 32 * 2**10
# The most bytes of the messages of other calls, which have names only.
_MOST_OTHER_BYTES = 64 * 2**10


class BoundCalls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Bounds all calls together, and reads and decodes their messages."""

    def __init__(self, intake: Intake, limits: RequestLimits, forms: Mapping[str, type[Message] | None]) -> None:
        """
        Args:
            forms: by method, the message that it takes if that may be large; None for a method that decodes its own.
        """
        self._intake = intake
        self._limits = limits
        self._forms = forms
        # By method, gRPC's handler and the one that replaces it.
        self._bound: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        known = self._bound.get(details.method)
        if known is None or known[0] is not handler:
            known = self._bound[details.method] = handler, self._bind(handler, details.method)
        return known[1]

    def _bind(self, handler: Any, method: str) -> Any:
        """The handler of a method that reads its own messages."""
        encode = partial(_encode, handler.response_serializer)
        decode = partial(self._decode, method, handler.request_deserializer)
        if handler.request_streaming:
            answer = partial(self._answer_stream, handler.stream_stream, decode)
        elif handler.response_streaming:
            answer = partial(self._answer_with_stream, handler.unary_stream, decode)
        else:
            answer_one = partial(self._answer, handler.unary_unary, decode)
            return grpc.stream_unary_rpc_method_handler(answer_one, None, encode)
        return grpc.stream_stream_rpc_method_handler(answer, None, encode)

    async def _decode(self, method: str, decode: Callable[[bytes], Any], data: bytes) -> Any:
        if method in self._forms:
            form = self._forms[method]
            return data if form is None else await decode_message(data, form, self._limits)
        if len(data) > _MOST_OTHER_BYTES:
            raise InputError(f"the message has {len(data)} bytes; this call takes {_MOST_OTHER_BYTES}")
        with _message_errors():
            return decode(data)

    async def _begin(self, decode: Decode, context: Context) -> Any:
        """Count a call and read its only message, or abort it if there is no room for it."""
        try:
            self._intake.enter(context)
            return await decode(await self._read(context))
        except (ProtocolError, RunnerError) as error:
            await _abort(context, error)

    async def _answer(self, answer: Callable[..., Any], decode: Decode, _: Any, context: Context) -> Any:
        request = await self._begin(decode, context)
        releases = collect_releases()
        context.add_done_callback(lambda _: release_all(releases))
        response = await answer(request, context)
        if isinstance(response, bytes):
            try:
                size = self._intake.take_answer(len(response))
            except RunnerError as error:
                await _abort(context, error)
            if size:
                context.add_done_callback(lambda _: self._intake.give_answer(size))
        return response

    async def _answer_with_stream(self, answer: Callable[..., Any], decode: Decode, _: Any, context: Context) -> None:
        request = await self._begin(decode, context)
        async with contextlib.aclosing(answer(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    async def _answer_stream(self, answer: Callable[..., Any], decode: Decode, _: Any, context: Context) -> None:
        try:
            self._intake.enter(context)
            async with self._intake.stream() as stream:

                async def read() -> AsyncIterator[Any]:
                    while (data := await context.read()) is not grpc.aio.EOF:
                        self._intake.touch(stream)
                        yield await decode(data)

                async with contextlib.aclosing(answer(read(), context)) as responses:
                    async for response in responses:
                        await context.write(response)
                        self._intake.touch(stream)
        except (ProtocolError, RunnerError) as error:
            await _abort(context, error)

    async def _read(self, context: Context) -> bytes:
        data = await self._intake.read(context)
        if data is None:
            raise InputError("the call has no message")
        return data


async def decode_message(data: bytes, form: type[M], limits: RequestLimits) -> M:
    """Decode a message, in a thread if it is large.

    Raises:
        LimitExceededError: it has more fields or elements than the operator allows.
        InputError: the bytes are not such a message; gRPC itself would answer with UNKNOWN.
    """

    def read() -> M:
        with _message_errors():
            check_message_amounts(data, form, limits)
            return form.FromString(data)

    return await offload_large(read, len(data), INLINE_BYTES)


@contextlib.contextmanager
def _message_errors() -> Iterator[None]:
    try:
        yield
    except DecodeError as error:
        raise InputError("the message is not this call's request") from error


def _encode(encode: Callable[[Any], bytes], response: Any) -> bytes:
    return response if isinstance(response, bytes) else encode(response)


async def _abort(context: Context, error: Exception) -> NoReturn:
    status, message, headers = describe_for_grpc(error)
    await context.abort(status, message, tuple(headers.items()))
    raise AssertionError("a call goes on after its end") from error


def describe_for_grpc(error: Exception) -> tuple[grpc.StatusCode, str, Mapping[str, str]]:
    """The code, message and trailing metadata of an error; unexpected errors are logged, and their messages hidden."""
    status, message, headers = describe_error(error)
    # For these two the log already has a line for the batch.
    if status == 500 and not isinstance(error, (NonFiniteScoresError, GenerationFailedError)):
        logger.error("a call failed: %s", type(error).__name__, exc_info=without_message(error))
    return grpc.StatusCode[grpc_code(status)], message, headers
