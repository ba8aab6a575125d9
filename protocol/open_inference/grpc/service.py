"""The calls of the Open Inference Protocol over gRPC.

They translate to and from `protocol/open_inference/dataplane.py`, as REST does.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar

from protocol.http.middleware.request_id import request_id
from protocol.open_inference import dataplane, repository
from protocol.open_inference.dataplane import describe_model
from protocol.open_inference.grpc.authentication import REQUEST_ID
from protocol.open_inference.grpc.call_records import read_metadata
from protocol.open_inference.grpc.calls import decode_message, describe_for_grpc
from protocol.open_inference.grpc.intake import Context, Intake
from protocol.open_inference.grpc.message_tensors import encode_answer, read_infer
from protocol.open_inference.grpc.streams import InferStream
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from protocol.versions import EXTENSIONS, SERVER_NAME, SERVER_VERSION
from runners.core.arguments import Arguments
from runners.core.models import Models, find_ready_model, reports_ready
from runners.core.request_record import current_record

T = TypeVar("T")


class InferenceService(GRPCInferenceServiceServicer):
    """The calls, under the protocol's names."""

    def __init__(self, models: Models, arguments: Arguments, intake: Intake) -> None:
        self._models = models
        self._arguments = arguments
        self._intake = intake

    async def ServerLive(self, _: messages.ServerLiveRequest, __: Context) -> messages.ServerLiveResponse:  # noqa: N802
        return messages.ServerLiveResponse(live=self._models.live)

    async def ServerReady(self, _: messages.ServerReadyRequest, __: Context) -> messages.ServerReadyResponse:  # noqa: N802
        return messages.ServerReadyResponse(ready=self._models.ready)

    async def ServerMetadata(  # noqa: N802
        self, _: messages.ServerMetadataRequest, __: Context
    ) -> messages.ServerMetadataResponse:
        return messages.ServerMetadataResponse(name=SERVER_NAME, version=SERVER_VERSION, extensions=EXTENSIONS)

    async def ModelReady(  # noqa: N802
        self, request: messages.ModelReadyRequest, context: Context
    ) -> messages.ModelReadyResponse:
        async def answer() -> messages.ModelReadyResponse:
            return messages.ModelReadyResponse(ready=reports_ready(self._models, request.name, request.version))

        return await self._guard(context, answer)

    async def ModelMetadata(  # noqa: N802
        self, request: messages.ModelMetadataRequest, context: Context
    ) -> messages.ModelMetadataResponse:
        async def answer() -> messages.ModelMetadataResponse:
            runner = find_ready_model(self._models, request.name, request.version)
            described = describe_model(self._models, runner)
            # MLServer's clients fail on `properties`: they have another type under its number.
            return messages.ModelMetadataResponse(**{**described, "properties": {}})

        return await self._guard(context, answer)

    async def ModelInfer(self, data: bytes, context: Context) -> bytes:  # noqa: N802
        """Answer an encoded ModelInferRequest with an encoded ModelInferResponse."""
        return await self._guard(context, lambda: self._infer(data))

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer encoded requests as they come, each with one or more encoded responses."""
        await self._guard(context, _nothing)
        async with contextlib.aclosing(
            InferStream(self._models, self._arguments, self._intake, read_metadata(context)).answer(requests)
        ) as responses:
            async for response in responses:
                yield response

    async def RepositoryIndex(  # noqa: N802
        self, request: messages.RepositoryIndexRequest, context: Context
    ) -> messages.RepositoryIndexResponse:
        async def answer() -> messages.RepositoryIndexResponse:
            listed = await repository.index(self._models, request.ready)
            return messages.RepositoryIndexResponse(
                models=[messages.RepositoryIndexResponse.ModelIndex(**model) for model in listed]
            )

        return await self._guard(context, answer)

    async def RepositoryModelLoad(  # noqa: N802
        self, request: messages.RepositoryModelLoadRequest, context: Context
    ) -> messages.RepositoryModelLoadResponse:
        name = request.model_name or request.repository_or_model_name
        await self._guard(context, lambda: repository.load(self._models, name, request.parameters))
        return messages.RepositoryModelLoadResponse(model_name=name, is_loaded=True)

    async def RepositoryModelUnload(  # noqa: N802
        self, request: messages.RepositoryModelUnloadRequest, context: Context
    ) -> messages.RepositoryModelUnloadResponse:
        name = request.model_name or request.repository_or_model_name
        await self._guard(context, lambda: self._models.unload(name))
        return messages.RepositoryModelUnloadResponse(model_name=name, is_unloaded=True)

    async def _guard(self, context: Context, answer: Callable[[], Awaitable[T]]) -> T:
        """Await the answer, or end the call with the error's code; answer and log get the client's request id."""
        client_id = dict(context.invocation_metadata() or ()).get(REQUEST_ID) or None
        request_id.set(client_id)
        if (record := current_record.get()) is not None:
            record.request_id = client_id
        echo = () if client_id is None else ((REQUEST_ID, client_id),)
        if echo:
            context.set_trailing_metadata(echo)
        try:
            return await answer()
        except Exception as error:
            status, message, headers = describe_for_grpc(error)
            await context.abort(status, message, (*echo, *headers.items()))
            raise

    async def _infer(self, data: bytes) -> bytes:
        limits = self._arguments
        request = await decode_message(data, messages.ModelInferRequest, limits)
        runner, call = await read_infer(self._models, request, len(data), limits)
        return await dataplane.infer(runner, call, limits, partial(encode_answer, request, runner.version))


async def _nothing() -> None:
    """Nothing: a stream gets its request id when it begins, before the first answer."""
