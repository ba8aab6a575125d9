"""The handlers of all gRPC calls, which read, count and decode messages within limits, and send answers.

They replace the services' own handlers by ones that read their messages: gRPC reads the message of a unary call before
it calls the handler.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from protocol.http.errors import describe_error, grpc_code
from protocol.http.offload import offload_large
from protocol.open_inference.grpc.authentication import RefuseForbidden
from protocol.open_inference.grpc.call_records import PROTOCOL, CallRecord, read_metadata, trace_whole_stream
from protocol.open_inference.grpc.intake import Context, Intake
from protocol.open_inference.grpc.message_counts import check_message_amounts
from runners.core.errors import InputError, RunnerError
from runners.core.request_limits import RequestLimits
from runners.core.request_record import current_record, record_refusal
from runners.core.sent_answers import Release, collect_releases, release_all

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Decode: TypeAlias = Callable[[bytes], Awaitable[Any]]

# Decoding more bytes would block the event loop for some ms; elements are smaller than those of JSON.
INLINE_BYTES = 32 * 2**10
# The most bytes of the messages of other calls, which have names only.
_MOST_OTHER_BYTES = 64 * 2**10
# A call that its client cancels has no message either: its handler is cancelled in the next turns of the event loop.
_CANCELLATION_SECONDS = 0.1


class BoundCalls(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Bounds all calls together, and reads and decodes their messages.

    Services are added to it as to a server. To gRPC's server it is the only handler: for each call, that server sets up
    its wait for the next call of every method which it knows by name, and runs a coroutine for every interceptor.
    """

    def __init__(
        self,
        access_check: RefuseForbidden,
        intake: Intake,
        limits: RequestLimits,
        forms: Mapping[str, type[Message] | None],
    ) -> None:
        """
        Args:
            forms: by method, the message that it takes if that may be large; None for a method that decodes its own.
        """
        self._access_check = access_check
        self._intake = intake
        self._limits = limits
        self._forms = forms
        self._handlers: dict[str, Any] = {}
        # The services that have come without their methods.
        self._awaited: set[str] = set()

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.ServiceRpcHandler]) -> None:
        """Take note of services, whose methods come by their names next."""
        self._awaited.update(handler.service_name() for handler in handlers)

    def check_complete(self) -> None:
        """
        Raises:
            RuntimeError: a service would not be served, because its stubs do not name its methods.
        """
        if self._awaited:
            names = ", ".join(sorted(self._awaited))
            raise RuntimeError(f"gRPC's stubs of {names} name no methods: generate them again")

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service."""
        self._awaited.discard(service)
        for name, handler in handlers.items():
            method = f"/{service}/{name}"
            self._handlers[method] = self._bind(handler, method)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call; None for an unknown one."""
        method = handler_call_details.method
        handler = self._access_check.check(handler_call_details) or self._handlers.get(method)
        if handler is None:
            # gRPC itself answers.
            record_refusal(PROTOCOL, grpc.StatusCode.UNIMPLEMENTED.name, "not_implemented", "gRPC")
        return handler

    def _bind(self, handler: Any, method: str) -> Any:
        """The handler of a method that reads its own messages."""
        encode = partial(_encode, handler.response_serializer)
        decode = partial(self._decode, method, handler.request_deserializer)

        # Functions, because gRPC asks of each call's handler what it is, which takes longer for others.
        async def answer(_: Any, context: Context) -> Any:
            with CallRecord(method, read_metadata(context), context):
                return await self._answer(handler.unary_unary, decode, context)

        async def answer_with_stream(_: Any, context: Context) -> None:
            with CallRecord(method, read_metadata(context), context):
                await self._answer_with_stream(handler.unary_stream, decode, context)

        async def answer_stream(_: Any, context: Context) -> None:
            if method in self._forms:
                # Its messages have records of their own.
                with trace_whole_stream(method, context):
                    await self._answer_stream(handler.stream_stream, decode, context, method)
                return
            with CallRecord(method, read_metadata(context), context):
                await self._answer_stream(handler.stream_stream, decode, context)

        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_stream, None, encode)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(answer_with_stream, None, encode)
        return grpc.stream_unary_rpc_method_handler(answer, None, encode)

    async def _decode(self, method: str, decode: Callable[[bytes], Any], data: bytes) -> Any:
        if method in self._forms:
            form = self._forms[method]
            return data if form is None else await decode_message(data, form, self._limits)
        if len(data) > _MOST_OTHER_BYTES:
            raise InputError(f"the message has {len(data)} bytes; this call takes {_MOST_OTHER_BYTES}")
        return _decode_with(decode, data)

    async def _begin(self, decode: Decode, context: Context, releases: list[Release]) -> Any:
        """Count a call until it is over, and read its only message; abort it if there is no room for it."""
        context.add_done_callback(lambda _: release_all(releases))
        try:
            releases.append(self._intake.enter())
            if (data := await self._intake.read(context)) is None:
                await asyncio.sleep(_CANCELLATION_SECONDS)
                raise InputError("the call has no message")
            return await decode(data)
        except grpc.aio.BaseError:
            raise
        except Exception as error:
            await _abort(context, error)

    async def _answer(self, answer: Callable[..., Any], decode: Decode, context: Context) -> Any:
        releases = collect_releases()
        response = await answer(await self._begin(decode, context, releases), context)
        if isinstance(response, bytes):
            try:
                size = self._intake.take_answer(len(response))
            except RunnerError as error:
                await _abort(context, error)
            if size:
                releases.append(partial(self._intake.give_answer, size))
        return response

    async def _answer_with_stream(self, answer: Callable[..., Any], decode: Decode, context: Context) -> None:
        request = await self._begin(decode, context, [])
        async with contextlib.aclosing(answer(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    async def _answer_stream(
        self, answer: Callable[..., Any], decode: Decode, context: Context, method: str | None = None
    ) -> None:
        """
        Args:
            method: the method of a stream that is recorded only if it is refused; None if it is recorded already.
        """
        try:
            leave = self._intake.enter()
            context.add_done_callback(lambda _: leave())
            async with self._intake.stream() as stream:

                async def read() -> AsyncIterator[Any]:
                    while (data := await context.read()) is not grpc.aio.EOF:
                        self._intake.touch(stream)
                        yield await decode(data)

                async with contextlib.aclosing(answer(read(), context)) as responses:
                    async for response in responses:
                        await context.write(response)
                        self._intake.touch(stream)
        except grpc.aio.BaseError:
            raise
        except Exception as error:
            if method is None:
                await _abort(context, error)
            with CallRecord(method, read_metadata(context), context):
                await _abort(context, error)


async def decode_message(data: bytes, form: type[M], limits: RequestLimits) -> M:
    """Decode a message, in a thread if it is large.

    Raises:
        LimitExceededError: it has more fields or elements than the operator allows.
        InputError: the bytes are not such a message; gRPC itself would answer with UNKNOWN.
    """

    def read(data: bytes) -> M:
        check_message_amounts(data, form, limits)
        return form.FromString(data)

    return await offload_large(lambda: _decode_with(read, data), len(data), INLINE_BYTES)


def _decode_with(decode: Callable[[bytes], T], data: bytes) -> T:
    """
    Raises:
        InputError: the bytes are not such a message.
    """
    try:
        return decode(data)
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
    code = grpc_code(status)
    if (record := current_record.get()) is not None:
        record.status = code
    return grpc.StatusCode[code], message, headers
