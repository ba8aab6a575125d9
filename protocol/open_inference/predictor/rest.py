"""The predictor over REST."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec
import orjson
from msgspec import UNSET, UnsetType

from protocol.http.body import parse_json
from protocol.open_inference.predictor.wire import Metadata, make_timeout_error, quote_words
from protocol.tensors import Tensor, tensor_from_binary, tensor_from_json
from runners.core.arguments import Arguments
from runners.core.errors import (
    InputError,
    PredictorAnswerError,
    PredictorRefusalError,
    PredictorTimeoutError,
    PredictorUnavailableError,
)
from runners.core.tracing import Target, trace_call

T = TypeVar("T")

_BINARY_EXTENSION = "binary_tensor_data"
_BINARY_HEADER = "inference-header-content-length"


class _TensorMetadata(msgspec.Struct):
    name: str
    datatype: str


class _ModelMetadata(msgspec.Struct):
    # KServe's lists are null or empty.
    inputs: list[_TensorMetadata] | None = None
    outputs: list[_TensorMetadata] | None = None


class _ServerMetadata(msgspec.Struct):
    extensions: list[str] | None = None


class _OutputTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class _InferAnswer(msgspec.Struct):
    outputs: list[_OutputTensor]


class _Failure(msgspec.Struct):
    error: str


_model_decoder = msgspec.json.Decoder(_ModelMetadata)
_server_decoder = msgspec.json.Decoder(_ServerMetadata)
_answer_decoder = msgspec.json.Decoder(_InferAnswer)
_failure_decoder = msgspec.json.Decoder(_Failure)

_UNAVAILABLE = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)


class RestWire:
    """The predictor over REST, on its own event loop, so that a whole call can have a time-out and be cancelled."""

    def __init__(self, arguments: Arguments) -> None:
        self._scheme = scheme = "https" if arguments.predictor_use_ssl else "http"
        self._host = str(arguments.predictor_host)
        self._model = f"/v2/models/{quote(arguments.model_name)}"
        self._client = httpx.AsyncClient(
            base_url=f"{scheme}://{self._host}",
            timeout=None,
            # Compressing megabytes of floats takes longer than sending them.
            headers={"accept-encoding": "identity"},
            # Servers keep connections for longer, so that no connection is used while a server closes it.
            limits=httpx.Limits(keepalive_expiry=3.0),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="predictor", daemon=True)
        self._thread.start()

    def metadata(self, seconds: float) -> Metadata:
        deadline = time.monotonic() + seconds
        server = self._call("GET", "/v2", seconds)
        extensions: Sequence[str] | None = None
        if server.status_code != HTTPStatus.NOT_FOUND:
            extensions = self._read(server, _server_decoder, "the predictor's metadata").extensions
        answer = self._call("GET", self._model, deadline - time.monotonic())
        model = self._read(answer, _model_decoder, "the metadata of the predictor's model")
        return Metadata(
            {tensor.name: tensor.datatype for tensor in model.inputs or []},
            [tensor.name for tensor in model.outputs or []],
            _BINARY_EXTENSION in (extensions or []),
        )

    def infer(self, inputs: Sequence[Tensor], output: str | None, binary: bool, seconds: float) -> list[Tensor]:
        blobs = [tensor.to_binary() for tensor in inputs] if binary else []
        described: list[dict[str, Any]] = []
        for index, tensor in enumerate(inputs):
            data = {"parameters": {"binary_data_size": len(blobs[index])}} if binary else {"data": tensor.flat}
            described.append({"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype, **data})
        request: dict[str, Any] = {"inputs": described}
        if output is not None:
            request["outputs"] = [{"name": output, "parameters": {"binary_data": binary}}]
        elif binary:
            request["parameters"] = {"binary_data_output": True}
        head = orjson.dumps(request, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {"content-type": "application/json"}
        if binary:
            headers = {"content-type": "application/octet-stream", _BINARY_HEADER: str(len(head))}
        response = self._call("POST", f"{self._model}/infer", seconds, b"".join([head, *blobs]), headers)
        if response.status_code in _REFUSED:
            raise PredictorRefusalError(f"the predictor refuses the tensors: {_explain(response)}")
        body, declared = response.content, response.headers.get(_BINARY_HEADER, "")
        length = int(declared) if declared.isdecimal() and int(declared) <= len(body) else len(body)
        answer = self._read(response, _answer_decoder, "the predictor's answer", body[:length])
        return _read_outputs(answer, memoryview(body)[length:])

    def ready(self, seconds: float) -> bool:
        return self._call("GET", f"{self._model}/ready", seconds).status_code == HTTPStatus.OK

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._give_up(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _give_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _call(
        self, method: str, path: str, seconds: float, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        with trace_call(Target(method, path, self._host, self._scheme)) as call:
            all_headers = {**(headers or {}), **call.headers}
            request = self._client.build_request(method, path, content=body, headers=all_headers)
            response = self._wait(self._send(request, seconds))
            call.note_status(response.status_code)
            return response

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except CancelledError:
            raise PredictorUnavailableError("the server is shutting down") from None

    async def _send(self, request: httpx.Request, seconds: float) -> httpx.Response:
        try:
            async with asyncio.timeout(seconds):
                return await self._client.send(request)
        except TimeoutError as error:
            raise make_timeout_error() from error
        except httpx.TransportError as error:
            raise PredictorUnavailableError("the predictor cannot be reached") from error
        except httpx.RequestError as error:
            raise PredictorAnswerError("the predictor's answer cannot be read") from error

    def _read(
        self, response: httpx.Response, decoder: msgspec.json.Decoder[T], what: str, body: bytes | None = None
    ) -> T:
        """Decode the JSON of an answer.

        Raises:
            PredictorError: the answer is an error, or its JSON is of another form.
        """
        status = response.status_code
        if status in _UNAVAILABLE:
            raise PredictorUnavailableError(f"the predictor is not available: {_explain(response)}")
        if status == HTTPStatus.GATEWAY_TIMEOUT:
            raise PredictorTimeoutError(f"the predictor was too slow: {_explain(response)}")
        if status != HTTPStatus.OK:
            raise PredictorAnswerError(f"the predictor answered with an error: {_explain(response)}")
        try:
            return parse_json(response.content if body is None else body, decoder, what)
        except InputError as error:
            raise PredictorAnswerError(str(error)) from error


def _explain(response: httpx.Response) -> str:
    """The status of an answer, and the protocol's error if it has one; clients do not get a gateway's page."""
    try:
        return f"{response.status_code}, {quote_words(_failure_decoder.decode(response.content).error)}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return str(response.status_code)


def _read_outputs(answer: _InferAnswer, binary: memoryview) -> list[Tensor]:
    tensors = []
    position = 0
    for output in answer.outputs:
        size = (output.parameters or {}).get("binary_data_size")
        if isinstance(size, int):
            data = binary[position : position + size]
            tensors.append(tensor_from_binary(output.name, output.datatype, output.shape, data, "output"))
            position += size
        elif not isinstance(output.data, UnsetType):
            tensors.append(tensor_from_json(output.name, output.datatype, output.shape, output.data, "output"))
    return tensors
