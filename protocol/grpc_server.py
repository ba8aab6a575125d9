"""The Open Inference Protocol over gRPC, with health checks and reflection.

It translates to and from `protocol/inference.py`, as REST does, and answers with the codes of `protocol/errors.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from protocol import inference, repository
from protocol.access import Access
from protocol.body import read_off_loop
from protocol.calls import check_version, find_model, find_ready_model
from protocol.errors import InvalidRequestError, describe, grpc_code
from protocol.grpc_access import REQUEST_ID, RefuseForbidden
from protocol.inference import Answer, InferCall, RequestedOutput, check_counts, describe_model
from protocol.latency import log_latency
from protocol.message_counts import check_amounts
from protocol.request_id import request_id
from protocol.stubs import open_inference_pb2 as messages
from protocol.stubs.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from protocol.tensors import (
    BYTES,
    Tensor,
    check_datatype,
    check_elements,
    check_placement,
    check_shape,
    read_text,
    tensor_from_binary,
    to_array,
)
from protocol.versions import MODEL_VERSION, SERVER_NAME, SERVER_VERSION, server_extensions
from runners.arguments import Arguments
from runners.certificates import read_grpc_credentials
from runners.draining import DRAIN_SECONDS
from runners.errors import GenerationFailedError, LimitExceededError, NonFiniteScoresError
from runners.inference import Models
from runners.request_limits import RequestLimits

logger = logging.getLogger(__name__)

T = TypeVar("T")
M = TypeVar("M", bound=Message)
Context: TypeAlias = "grpc.aio.ServicerContext"

_SERVICE = "inference.GRPCInferenceService"
_GRPC_LOGGER = "grpc._cython.cygrpc"
_WATCH_SECONDS = 0.5
# Numbers that are copied at once: some ms, in which no other thread runs.
_AT_ONCE = 2**16
# Requests of a stream that are answered at a time, and answers that wait for the client.
_MOST_IN_STREAM = 64
# As KServe's and Triton's streams have it: the parameter that tells the last response to a request.
_FINAL = "triton_final_response"
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


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
        server = grpc.aio.server(
            interceptors=[
                RefuseForbidden(Access(arguments), arguments.enable_latency_logging),
                _DecodeRequests(arguments),
            ],
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_send_message_length", arguments.grpc_max_send_message_length),
                ("grpc.max_receive_message_length", arguments.grpc_max_receive_message_length),
                # Clients may ask whether the connection lives while nothing else goes over it.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_concurrent_streams", arguments.max_concurrent_requests),
                # Else calls of a client that keeps to that are refused, with UNAVAILABLE, while earlier ones are freed.
                ("grpc.http.overload_protection", 0),
                ("grpc.max_metadata_size", arguments.max_header_bytes),
                ("grpc.max_allowed_incoming_connections", arguments.max_connections),
                ("grpc.server_handshake_timeout_ms", round(1000 * arguments.header_timeout)),
                ("grpc.max_connection_idle_ms", 1000 * arguments.timeout_keep_alive),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            _Service(self._models, arguments), server
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


class _DecodeRequests(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Counts what is in a message before it is decoded, off the loop if it is large, and refuses what is no message.

    gRPC itself answers such a message with UNKNOWN, in Python's words.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or handler.unary_unary is None:
            # A stream of ours decodes its own; each other one takes names only.
            is_ours = handler is not None and details.method == f"/{_SERVICE}/ModelStreamInfer"
            return handler._replace(request_deserializer=None) if is_ours else handler
        answer, decode = handler.unary_unary, handler.request_deserializer
        # What other services take are names, in one message each.
        form = _REQUESTS.get(details.method)

        async def answer_or_refuse(data: bytes, context: Context) -> Any:
            try:
                request = decode(data) if form is None else await _decode(data, form, self._limits)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, _WRONG_MESSAGE)
            except LimitExceededError as error:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
            return await answer(request, context)

        return handler._replace(unary_unary=answer_or_refuse, request_deserializer=None)


async def _decode(data: bytes, form: type[M], limits: RequestLimits) -> M:
    """A message of its bytes.

    Raises:
        LimitExceededError: there is more in it than the operator allows.
        DecodeError: it is none.
    """

    def read() -> M:
        check_amounts(data, form, limits)
        return form.FromString(data)

    return await read_off_loop(read, len(data))


_WRONG_MESSAGE = "the message is not this call's request"
_METHODS = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
_REQUESTS: Mapping[str, type[Any]] = {
    f"/{_SERVICE}/{method.name}": getattr(messages, method.input_type.name) for method in _METHODS
}


class _Service(GRPCInferenceServiceServicer):
    """The calls; their names are the protocol's."""

    def __init__(self, models: Models, arguments: Arguments) -> None:
        self._models = models
        self._arguments = arguments
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

    async def ModelInfer(  # noqa: N802
        self, request: messages.ModelInferRequest, context: Context
    ) -> messages.ModelInferResponse:
        return await self._guard(context, "ModelInfer", lambda: self._infer(request))

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[messages.ModelStreamInferResponse]:
        """Answer requests side by side as they come; an error answers its request and leaves the others alone.

        No more requests are read, and no more answers made, than the client takes.
        """
        await self._guard(context, "ModelStreamInfer", _nothing)
        responses: asyncio.Queue[messages.ModelStreamInferResponse | None] = asyncio.Queue(_MOST_IN_STREAM)
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
                yield response
        finally:
            for task in (reading, *answering):
                task.cancel()
            await asyncio.gather(reading, *answering, return_exceptions=True)

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

    async def _infer(self, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
        check_version(request.model_name, request.model_version)
        runner = find_ready_model(self._models, request.model_name)
        call = await self._read_call(request)
        return await inference.infer(runner, call, self._arguments, partial(_render, request))

    async def _read_call(self, request: messages.ModelInferRequest) -> InferCall:
        return await read_off_loop(lambda: _read_call(request, self._arguments), request.ByteSize())

    async def _answer_in_stream(
        self, data: bytes, responses: asyncio.Queue[messages.ModelStreamInferResponse | None]
    ) -> None:
        limits = self._arguments
        request = messages.ModelInferRequest()
        try:
            request = await _decode(data, messages.ModelInferRequest, limits)
            check_version(request.model_name, request.model_version)
            runner = find_ready_model(self._models, request.model_name)
            call = await self._read_call(request)
            async with contextlib.aclosing(inference.stream(runner, call, limits)) as answers:
                async for answer, final in answers:
                    response = _render(request, answer)
                    response.parameters[_FINAL].bool_param = final
                    await responses.put(messages.ModelStreamInferResponse(infer_response=response))
        except Exception as error:
            if isinstance(error, DecodeError):
                error = InvalidRequestError(_WRONG_MESSAGE)
            # The id tells the client which of its requests failed.
            failed = messages.ModelInferResponse(id=request.id)
            message = describe_for_grpc(error)[1]
            await responses.put(messages.ModelStreamInferResponse(error_message=message, infer_response=failed))


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


def describe_for_grpc(error: Exception) -> tuple[grpc.StatusCode, str, Mapping[str, str]]:
    """Code, message and trailing metadata of any error; what is not meant for the client is logged and hidden."""
    status, message, headers = describe(error)
    # A line for a batch of these is in the log already.
    if status == 500 and not isinstance(error, (NonFiniteScoresError, GenerationFailedError)):
        logger.error("a call failed: %s", type(error).__name__, exc_info=error)
    return grpc.StatusCode[grpc_code(status)], message, headers


def _read_call(request: messages.ModelInferRequest, limits: RequestLimits) -> InferCall:
    parameters = [tensor.parameters for tensor in request.inputs]
    check_counts(request.parameters, parameters, [output.parameters for output in request.outputs], limits)
    return InferCall(
        _read_tensors(request, limits),
        _read_parameters(request.parameters),
        [RequestedOutput(output.name, _read_parameters(output.parameters)) for output in request.outputs],
        binary=bool(request.raw_input_contents),
    )


def _read_parameters(parameters: MutableMapping[str, messages.InferParameter]) -> dict[str, Any]:
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _read_tensors(request: messages.ModelInferRequest, limits: RequestLimits) -> list[Tensor]:
    for tensor in request.inputs:
        check_placement(tensor.name, tensor.parameters)
    raw = request.raw_input_contents
    if not raw:
        return [_read_contents(tensor) for tensor in request.inputs]
    if len(raw) != len(request.inputs):
        # This and the next are KServe's words.
        raise InvalidRequestError(
            f"the number of inputs ({len(request.inputs)}) does not match the expected number of raw input contents "
            f"({len(raw)}) for model '{request.model_name}'."
        )
    for tensor in request.inputs:
        if tensor.contents.ListFields():
            raise InvalidRequestError(
                f"contents field must not be specified when using raw_input_contents for input '{tensor.name}' for "
                f"model '{request.model_name}'"
            )
    for tensor, data in zip(request.inputs, raw, strict=True):
        check_elements(tensor.name, tensor.datatype, len(data), tensor.shape, limits)
    return [
        tensor_from_binary(tensor.name, tensor.datatype, tensor.shape, memoryview(data))
        for tensor, data in zip(request.inputs, raw, strict=True)
    ]


def _read_contents(tensor: messages.ModelInferRequest.InferInputTensor) -> Tensor:
    name, datatype = tensor.name, check_datatype(tensor.name, tensor.datatype)
    if datatype not in _CONTENTS:
        raise InvalidRequestError(f"input {name!r} is {datatype}: it goes into raw_input_contents only")
    if wrong := [field.name for field, _ in tensor.contents.ListFields() if field.name != _CONTENTS[datatype]]:
        raise InvalidRequestError(
            f"input {name!r} is {datatype}, which goes into {_CONTENTS[datatype]}, not {wrong[0]}"
        )
    values: Sequence[Any] = getattr(tensor.contents, _CONTENTS[datatype])
    shape = check_shape(name, tensor.shape, len(values))
    if datatype == BYTES:
        what = f"the data of input {name!r}"
        return Tensor(name, datatype, shape, [read_text(value, i, what) for i, value in enumerate(values)])
    return Tensor(name, datatype, shape, to_array(name, datatype, values))


def _render(request: messages.ModelInferRequest, answer: Answer) -> messages.ModelInferResponse:
    response = messages.ModelInferResponse(
        model_name=request.model_name, model_version=MODEL_VERSION, id=inference.answer_id(request.id)
    )
    # All tensors raw or none, as the protocol has it.
    raw = any(binary for _, binary in answer)
    for tensor, _ in answer:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            response.raw_output_contents.append(bytes(tensor.to_binary()))
        elif isinstance(tensor.flat, list):
            output.contents.bytes_contents.extend(element.encode() for element in tensor.flat)
        else:
            contents = getattr(output.contents, _CONTENTS[tensor.datatype])
            for start in range(0, len(tensor.flat), _AT_ONCE):
                contents.extend(tensor.flat[start : start + _AT_ONCE].tolist())
    return response
