"""`ModelStreamInfer`: the requests of a stream are answered concurrently."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

from protocol.open_inference import dataplane
from protocol.open_inference.grpc.call_records import CallRecord
from protocol.open_inference.grpc.calls import decode_message, describe_for_grpc
from protocol.open_inference.grpc.intake import Intake
from protocol.open_inference.grpc.message_tensors import encode_answer, encode_field, read_infer
from protocol.open_inference.grpc.methods import SERVICE
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from runners.core.models import Models
from runners.core.request_limits import RequestLimits
from runners.core.request_record import ReadHeader
from runners.core.sent_answers import collect_releases, release_all

# The most requests of a stream that are answered at a time, and the most answers that wait for the client.
_MOST_IN_STREAM = 64
_ROUTE = f"/{SERVICE}/ModelStreamInfer"
_RESPONSE = messages.ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER


class InferStream:
    """One stream. An error answers its own request and does not affect the others.

    No more requests are read, and no more answers made, than the client takes.
    """

    def __init__(self, models: Models, limits: RequestLimits, intake: Intake, read_header: ReadHeader) -> None:
        """
        Args:
            read_header: reads the stream's metadata.
        """
        self._read_header = read_header
        self._models = models
        self._limits = limits
        self._intake = intake
        self._responses: asyncio.Queue[_Encoded | None] = asyncio.Queue(_MOST_IN_STREAM)
        self._places = asyncio.Semaphore(_MOST_IN_STREAM)
        self._answering: set[asyncio.Task[None]] = set()

    async def answer(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The encoded responses to encoded requests, in the order in which they are ready."""
        reading = asyncio.create_task(self._read(requests))
        responses = self._responses
        try:
            while (response := await responses.get()) is not None:
                with response:
                    yield response.data
        finally:
            for task in (reading, *self._answering):
                task.cancel()
            await asyncio.gather(reading, *self._answering, return_exceptions=True)
            while not responses.empty():
                if (response := responses.get_nowait()) is not None:
                    response.close()

    async def _read(self, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            await self._places.acquire()
            task = asyncio.create_task(self._answer_one(data))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            task.add_done_callback(lambda _: self._places.release())
        await asyncio.gather(*self._answering)
        await self._responses.put(None)

    async def _answer_one(self, data: bytes) -> None:
        with CallRecord(_ROUTE, self._read_header):
            await self._answer_recorded(data)

    async def _answer_recorded(self, data: bytes) -> None:
        request = messages.ModelInferRequest()
        releases = collect_releases()
        try:
            request = await decode_message(data, messages.ModelInferRequest, self._limits)
            runner, call = await read_infer(self._models, request, len(data), self._limits)
            async with contextlib.aclosing(dataplane.stream(runner, call, self._limits)) as answers:
                async for answer, is_final in answers:
                    response = encode_field(_RESPONSE, [encode_answer(request, runner.version, answer, is_final)])
                    await self._put(b"".join(response))
        except Exception as error:
            # The id tells the client which of its requests failed.
            failed = messages.ModelInferResponse(id=request.id)
            message = describe_for_grpc(error)[1]
            refusal = messages.ModelStreamInferResponse(error_message=message, infer_response=failed)
            await self._put(refusal.SerializeToString())
        finally:
            release_all(releases)

    async def _put(self, data: bytes) -> None:
        response = _Encoded(data, self._intake)
        try:
            await self._responses.put(response)
        except BaseException:
            response.close()
            raise


class _Encoded:
    """A response of a stream, whose bytes count until its client has read it."""

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
