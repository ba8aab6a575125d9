"""The Open Inference Protocol over gRPC, with health checks and reflection.

It translates to and from `protocol/open_inference/dataplane.py`, as REST does; `protocol/http/errors.py` has its codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from protocol.http.connections.descriptors import reserve_descriptors
from protocol.http.middleware.authentication import Access
from protocol.http.middleware.latency import log_latency
from protocol.http.middleware.request_id import request_id
from protocol.open_inference import dataplane as inference
from protocol.open_inference import repository
from protocol.open_inference.dataplane import describe_model
from protocol.open_inference.grpc.authentication import REQUEST_ID, RefuseForbidden
from protocol.open_inference.grpc.calls import BoundCalls, decode_message, describe_for_grpc, read_off_loop
from protocol.open_inference.grpc.intake import Context, Intake
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from protocol.open_inference.grpc.tensors import encode_answer, encode_field, read_call
from protocol.versions import SERVER_NAME, SERVER_VERSION, check_version, server_extensions
from runners.core.arguments import Arguments
from runners.core.certificates import read_grpc_credentials
from runners.core.draining import DRAIN_SECONDS
from runners.core.models import Models, find_model, find_ready_model

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SERVICE = "inference.GRPCInferenceService"
_GRPC_LOGGER = "grpc._cython.cygrpc"
_WATCH_SECONDS = 0.5
# Requests of a stream that are answered at a time, and answers that wait for the client.
_MOST_IN_STREAM = 64
_RESPONSE = messages.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class GrpcServer:
    """The gRPC server of one worker; several workers share the port."""

    def __init__(self, models: Models, arguments: Arguments) -> None:
        self._models = models
        self._arguments = arguments
        self._server: grpc.aio.Server | None = None
        self._health = _Health(models)

    async def start(self) -> None:
        """Listen.

        Raises:
            ArgumentsError: the port cannot be used, or the certificate not be read.
        """
        arguments = self._arguments
        logging.getLogger(_GRPC_LOGGER).addFilter(_is_fault)
        intake = Intake(arguments)
        server = grpc.aio.server(
            interceptors=[
                RefuseForbidden(Access(arguments), arguments, arguments.enable_latency_logging),
                BoundCalls(intake, arguments, _FORMS),
            ],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_send_message_length", arguments.grpc_max_send_message_length),
                ("grpc.max_receive_message_length", arguments.grpc_max_receive_message_length),
                # Clients may ask whether the connection lives while nothing else goes over it.
                ("grpc.keepalive_permit_without_calls", 1),
                # More is read of a message only once its turn has come.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_concurrent_streams", arguments.max_concurrent_requests),
                # Else calls of a client that keeps to that are refused, with UNAVAILABLE, while earlier ones are freed.
                ("grpc.http.overload_protection", 0),
                ("grpc.max_metadata_size", arguments.max_header_bytes),
                ("grpc.max_allowed_incoming_connections", reserve_descriptors(arguments.max_connections)),
                ("grpc.server_handshake_timeout_ms", round(1000 * arguments.header_timeout)),
                ("grpc.http2.settings_timeout", round(1000 * arguments.header_timeout)),
                ("grpc.max_connection_idle_ms", 1000 * arguments.timeout_keep_alive),
                ("grpc.keepalive_time_ms", round(1000 * arguments.answer_timeout)),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Service(self._models, arguments, intake), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        pool = messages.DESCRIPTOR.pool
        for described in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
            pool.AddSerializedFile(described.serialized_pb)
        reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server, pool)
        address = f"[::]:{arguments.grpc_port}"
        credentials = read_grpc_credentials(arguments)
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
        await server.start()
        self._server = server
        logger.info("gRPC listens on port %d", arguments.grpc_port)

    async def stop(self) -> None:
        """Take no more calls, and return when those under way have ended, after 20 seconds at most."""
        self._health.draining = True
        if self._server is not None:
            await self._server.stop(DRAIN_SECONDS)


# Those that may be large are decoded where they are answered.
_DECODED_LATER = frozenset({"ModelInfer", "ModelStreamInfer"})
_METHODS = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
_FORMS: Mapping[str, type[Message] | None] = {
    f"/{_SERVICE}/{each.name}": None if each.name in _DECODED_LATER else getattr(messages, each.input_type.name)
    for each in _METHODS
}


class _Service(GRPCInferenceServiceServicer):
    """The calls; their names are the protocol's."""

    def __init__(self, models: Models, arguments: Arguments, intake: Intake) -> None:
        self._models = models
        self._arguments = arguments
        self._intake = intake
        self._log_latency = arguments.enable_latency_logging

    async def ServerLive(self, _: messages.ServerLiveRequest, __: Context) -> messages.ServerLiveResponse:  # noqa: N802
        return messages.ServerLiveResponse(live=self._models.live)

    async def ServerReady(self, _: messages.ServerReadyRequest, __: Context) -> messages.ServerReadyResponse:  # noqa: N802
        return messages.ServerReadyResponse(ready=self._models.ready)

    async def ServerMetadata(  # noqa: N802
        self, _: messages.ServerMetadataRequest, __: Context
    ) -> messages.ServerMetadataResponse:
        extensions = server_extensions(self._models)
        return messages.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION, extensions=extensions)

    async def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: Context
    ) -> messages.ModelReadyResponse:
        async def answer() -> messages.ModelReadyResponse:
            check_version(request.name, request.version)
            return messages.ModelReadyResponse(ready=find_model(self._models, request.name).ready)

        return await self._guard(context, "ModelReady", answer)

    async def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: Context
    ) -> messages.ModelMetadataResponse:
        async def answer() -> messages.ModelMetadataResponse:
            check_version(request.name, request.version)
            described = describe_model(find_ready_model(self._models, request.name))
            # MLServer's clients have another type under the number of `properties`, and fail on any.
            return messages.ModelMetadataResponse(**{**described, "properties": {}})

        return await self._guard(context, "ModelMetadata", answer)

    async def ModelInfer(self, data: bytes, context: Context) -> bytes:  # noqa: N802
        """Answer an encoded ModelInferRequest with an encoded ModelInferResponse."""
        return await self._guard(context, "ModelInfer", lambda: self._infer(data))

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer requests side by side as they come; an error answers its request and leaves the others alone.

        No more requests are read, and no more answers made, than the client takes.
        """
        await self._guard(context, "ModelStreamInfer", _nothing)
        responses: asyncio.Queue[_Encoded | None] = asyncio.Queue(_MOST_IN_STREAM)
        places = asyncio.Semaphore(_MOST_IN_STREAM)
        answering: set[asyncio.Task[None]] = set()

        async def read() -> None:
            async for data in requests:
                await places.acquire()
                task = asyncio.create_task(self._answer_in_stream(data, responses))
                answering.add(task)
                task.add_done_callback(answering.discard)
                task.add_done_callback(lambda _: places.release())
            await asyncio.gather(*answering)
            await responses.put(None)

        reading = asyncio.create_task(read())
        try:
            while (response := await responses.get()) is not None:
                with response:
                    yield response.data
        finally:
            for task in (reading, *answering):
                task.cancel()
            await asyncio.gather(reading, *answering, return_exceptions=True)
            while not responses.empty():
                if (response := responses.get_nowait()) is not None:
                    response.close()

    async def RepositoryIndex(  # noqa: N802
        self, request: messages.RepositoryIndexRequest, context: Context
    ) -> messages.RepositoryIndexResponse:
        async def answer() -> messages.RepositoryIndexResponse:
            listed = repository.index(self._models, request.ready)
            return messages.RepositoryIndexResponse(
                models=[messages.RepositoryIndexResponse.ModelIndex(**model) for model in listed]
            )

        return await self._guard(context, "RepositoryIndex", answer)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: messages.RepositoryModelLoadRequest, context: Context
    ) -> messages.RepositoryModelLoadResponse:
        name = request.model_name or request.repository_or_model_name
        await self._guard(
            context, "RepositoryModelLoad", lambda: repository.load(self._models, name, request.parameters)
        )
        return messages.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def RepositoryModelUnload(  # noqa: N802
        self, request: messages.RepositoryModelUnloadRequest, context: Context
    ) -> messages.RepositoryModelUnloadResponse:
        name = request.model_name or request.repository_or_model_name
        await self._guard(context, "RepositoryModelUnload", lambda: repository.unload(self._models, name))
        return messages.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    async def _guard(self, context: Context, method: str, answer: Callable[[], Awaitable[T]]) -> T:
        """Await the answer, or end the call with the error's code; the client's id for it goes back and to the log."""
        started = time.perf_counter()
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        given = metadata.get(REQUEST_ID) or None
        request_id.set(given)
        echo = () if given is None else ((REQUEST_ID, given),)
        context.set_trailing_metadata(echo)
        status = grpc.StatusCode.CANCELLED
        try:
            found = await answer()
            status = grpc.StatusCode.OK
        except Exception as error:
            status, message, headers = describe_for_grpc(error)
            await context.abort(status, message, (*echo, *headers.items()))
            raise
        finally:
            if self._log_latency:
                # The line has the id of its own.
                request_id.set(None)
                log_latency(given, "gRPC", f"/{_SERVICE}/{method}", status.name, started)
        return found

    async def _infer(self, data: bytes) -> bytes:
        limits = self._arguments
        request = await decode_message(data, messages.ModelInferRequest, limits)
        check_version(request.model_name, request.model_version)
        runner = find_ready_model(self._models, request.model_name)
        call = await read_off_loop(lambda: read_call(request, limits), len(data))
        return await inference.infer(runner, call, limits, partial(encode_answer, request))

    async def _answer_in_stream(self, data: bytes, responses: asyncio.Queue[_Encoded | None]) -> None:
        limits = self._arguments
        request = messages.ModelInferRequest()
        try:
            request = await decode_message(data, messages.ModelInferRequest, limits)
            check_version(request.model_name, request.model_version)
            runner = find_ready_model(self._models, request.model_name)
            call = await read_off_loop(lambda: read_call(request, limits), len(data))
            async with contextlib.aclosing(inference.stream(runner, call, limits)) as answers:
                async for answer, final in answers:
                    response = encode_field(_RESPONSE, [encode_answer(request, answer, final)])
                    await self._put(responses, b"".join(response))
        except Exception as error:
            # The id tells the client which of its requests failed.
            failed = messages.ModelInferResponse(id=request.id)
            message = describe_for_grpc(error)[1]
            refusal = messages.ModelStreamInferResponse(error_message=message, infer_response=failed)
            await self._put(responses, refusal.SerializeToString())

    async def _put(self, responses: asyncio.Queue[_Encoded | None], data: bytes) -> None:
        response = _Encoded(data, self._intake)
        try:
            await responses.put(response)
        except BaseException:
            response.close()
            raise


class _Encoded:
    """A response in a stream, which counts until its client has read it."""

    def __init__(self, data: bytes, intake: Intake) -> None:
        """
        Raises:
            OverloadedError: there is no room for it beside other answers.
        """
        self.data = data
        self._intake = intake
        self._counted = intake.take_answer(len(data))

    def close(self) -> None:
        self._intake.give_answer(self._counted)
        self._counted = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()


async def _nothing() -> None:
    """What a stream answers before its first request: its id is echoed, and its line logged, when it begins."""


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """https://github.com/grpc/grpc/blob/master/doc/health-checking.md: serving is being ready."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.draining = False

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:200]}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, _: Context) -> AsyncIterator[Any]:  # noqa: N802
        last = None
        while True:
            status = self._status(request.service)
            if status is None:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
            last = status
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self, service: str) -> Any:
        """The server's under its own name or none, a model's under the model's; None for others."""
        if service in ("", _SERVICE):
            serving = self._models.ready
        elif (runner := self._models.find(service)) is not None:
            serving = runner.ready
        else:
            return None
        status = health_pb2.HealthCheckResponse
        return status.SERVING if serving and not self.draining else status.NOT_SERVING


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether it is more than that a message, or a status, found no client: one has left, as clients may."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError"
