"""The client of the predictor: a server of the Open Inference Protocol, over REST or gRPC, that runs the model.

It reads the metadata of the predictor's model before the first batch, and again after every error: another model may
answer then.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import grpc
import httpx
import msgspec
import numpy as np
import orjson
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from protocol.http.body import parse_json
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protocol.open_inference.tensors import BYTES, DTYPES, Tensor, check_shape, tensor_from_binary, tensor_from_json
from runners.core.arguments import Arguments
from runners.core.errors import (
    InputError,
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    PredictorTimeoutError,
    PredictorUnavailableError,
)
from runners.core.predictions import TRUNCATED_TOKENS
from runners.core.predictor import Predictor

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOGITS = "logits"
_TOKEN_DATATYPE = "INT64"
_BINARY_EXTENSION = "binary_tensor_data"
_BINARY_HEADER = "inference-header-content-length"
_READY_SECONDS = 5.0
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 2.0
# How much of the predictor's own words is shown to clients.
_LONGEST_QUOTE = 200


@dataclass(frozen=True, slots=True)
class _Metadata:
    """What the predictor says of its model.

    Attributes:
        datatypes: those of the inputs by name; empty where it does not say.
        outputs: their names; empty where it does not say.
        binary: whether it takes the binary tensor extension; gRPC needs none.
    """

    datatypes: Mapping[str, str]
    outputs: Sequence[str]
    binary: bool


class _Wire(Protocol):
    """One of the two forms of the protocol; all calls may raise a PredictorError."""

    def metadata(self, seconds: float) -> _Metadata: ...

    def infer(self, inputs: Sequence[Tensor], output: str | None, binary: bool, seconds: float) -> list[Tensor]:
        """The named output, or all where None is named."""

    def ready(self, seconds: float) -> bool: ...

    def close(self) -> None: ...


def connect_predictor(arguments: Arguments) -> Predictor:
    """A connection to the predictor that the arguments name; nothing is sent yet."""
    wire = _Grpc(arguments) if arguments.predictor_protocol == "grpc-v2" else _Rest(arguments)
    return OpenInferencePredictor(
        wire, arguments.predictor_request_timeout_seconds, arguments.predictor_request_retries
    )


class OpenInferencePredictor:
    """The predictor, whatever the wire; thread-safe."""

    def __init__(self, wire: _Wire, seconds: float, retries: int) -> None:
        """
        Args:
            seconds: the longest that a call may take, retries included.
            retries: how often what can succeed later is tried again.
        """
        self._wire = wire
        self._seconds = seconds
        self._retries = retries
        self._metadata: _Metadata | None = None
        self._failing = False
        self._refused = False
        self._closed = threading.Event()

    def infer(self, tensors: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        deadline = time.monotonic() + self._seconds
        for attempt in count():
            try:
                answer = self._ask(tensors, deadline)
            except PredictorError as error:
                self._metadata = None
                delay = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**attempt)
                may_succeed = isinstance(error, PredictorUnavailableError) and attempt < self._retries
                if may_succeed and time.monotonic() + delay < deadline and not self._closed.wait(delay):
                    continue
                self._note(error)
                raise
            self._note(None)
            return answer
        raise AssertionError("count() has no end")

    def ready(self) -> bool:
        try:
            return self._wire.ready(_READY_SECONDS)
        except PredictorError:
            return False

    def close(self) -> None:
        self._closed.set()
        self._wire.close()

    def _ask(self, tensors: Mapping[str, NDArray[np.int64]], deadline: float) -> NDArray[np.float32]:
        metadata = self._metadata
        if metadata is None:
            metadata = self._metadata = self._wire.metadata(self._left(deadline))
        inputs = [
            Tensor(name, _input_datatype(name, metadata), list(array.shape), array.ravel())
            for name, array in tensors.items()
        ]
        wanted = _choose_output(metadata.outputs) if metadata.outputs else None
        try:
            outputs = self._wire.infer(inputs, wanted, metadata.binary, self._left(deadline))
        except InputError as error:
            raise PredictorAnswerError(f"the predictor's answer is wrong: {error}") from error
        by_name = {tensor.name: tensor for tensor in outputs}
        tensor = by_name[_choose_output([*by_name])]
        if isinstance(tensor.flat, list):
            raise PredictorAnswerError(f"the predictor's output {tensor.name} is of texts; logits are numbers")
        return np.asarray(tensor.flat, np.float32).reshape(tensor.shape)

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if self._closed.is_set():
            raise PredictorUnavailableError("the server is shutting down")
        if left <= 0:
            raise _too_slow()
        return left

    def _note(self, error: PredictorError | None) -> None:
        """Log when the predictor begins to fail and when it answers again, not every batch between."""
        if isinstance(error, PredictorRefusalError):
            # Where only the size is wrong, every large batch is refused, and its parts are answered.
            if not self._refused:
                logger.warning("%s; this is said once", error)
            self._refused = True
            return
        if error is not None and not self._failing:
            cause: Any = error.__cause__
            details = cause.details() if isinstance(cause, grpc.RpcError) else cause
            logger.warning("%s (%s)", error, " ".join(str(details or "no further cause").split()))
        elif error is None and self._failing:
            logger.warning("the predictor answers again")
        self._failing = error is not None


def _input_datatype(name: str, metadata: _Metadata) -> str:
    # Of a server like this one the metadata has only the texts that it takes too, and KServe's has nothing.
    if all(datatype == BYTES for datatype in metadata.datatypes.values()):
        return _TOKEN_DATATYPE
    if (datatype := metadata.datatypes.get(name)) in DTYPES:
        return datatype
    raise PredictorAnswerError(
        f"the predictor's model has no input {name} of numbers, it has {', '.join(metadata.datatypes)}: set "
        "tensor_input_names to what it is to be sent"
    )


def _choose_output(names: Sequence[str]) -> str:
    if _LOGITS in names:
        return _LOGITS
    # A server like this one can also say what it has left out.
    others = [name for name in names if name != TRUNCATED_TOKENS.name]
    if len(others) == 1:
        return others[0]
    raise PredictorAnswerError(
        f"the predictor's model must have an output logits, or only one; it has {', '.join(names) or 'none'}"
    )


def _too_slow() -> PredictorTimeoutError:
    return PredictorTimeoutError("the predictor did not answer within predictor_request_timeout_seconds")


def _quote(words: str) -> str:
    """What the predictor says, on one line."""
    line = " ".join(words.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]} ..."


class _TensorMetadata(msgspec.Struct):
    name: str
    datatype: str


class _ModelMetadata(msgspec.Struct):
    # KServe's are null or empty.
    inputs: list[_TensorMetadata] | None = None
    outputs: list[_TensorMetadata] | None = None


class _ServerMetadata(msgspec.Struct):
    extensions: list[str] | None = None


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Output]


class _Failure(msgspec.Struct):
    error: str


_model_decoder = msgspec.json.Decoder(_ModelMetadata)
_server_decoder = msgspec.json.Decoder(_ServerMetadata)
_answer_decoder = msgspec.json.Decoder(_Answer)
_failure_decoder = msgspec.json.Decoder(_Failure)

_UNAVAILABLE = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE)
_REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)


class _Rest:
    """Over REST, on an event loop of its own: only there a whole call can be bounded, and given up at the end."""

    def __init__(self, arguments: Arguments) -> None:
        scheme = "https" if arguments.predictor_use_ssl else "http"
        self._model = f"/v2/models/{quote(arguments.model_name)}"
        self._client = httpx.AsyncClient(
            base_url=f"{scheme}://{arguments.predictor_host}",
            timeout=None,
            # To pack and unpack megabytes of floats takes longer than to send them.
            headers={"accept-encoding": "identity"},
            # Shorter than servers keep a connection, so that none is used that they are closing.
            limits=httpx.Limits(keepalive_expiry=3.0),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="predictor", daemon=True)
        self._thread.start()

    def metadata(self, seconds: float) -> _Metadata:
        deadline = time.monotonic() + seconds
        server = self._call("GET", "/v2", seconds)
        extensions: Sequence[str] | None = None
        if server.status_code != HTTPStatus.NOT_FOUND:
            extensions = self._read(server, _server_decoder, "the predictor's metadata").extensions
        answer = self._call("GET", self._model, deadline - time.monotonic())
        model = self._read(answer, _model_decoder, "the metadata of the predictor's model")
        return _Metadata(
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
        return self._wait(self._send(self._client.build_request(method, path, content=body, headers=headers), seconds))

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
            raise _too_slow() from error
        except httpx.TransportError as error:
            raise PredictorUnavailableError("the predictor cannot be reached") from error
        except httpx.RequestError as error:
            raise PredictorAnswerError("the predictor's answer cannot be read") from error

    def _read(
        self, response: httpx.Response, decoder: msgspec.json.Decoder[T], what: str, body: bytes | None = None
    ) -> T:
        """The JSON of an answer.

        Raises:
            PredictorError: the answer is an error, or no such JSON.
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
    """The status of an answer, and the protocol's error where it has one: a gateway's page says nothing to clients."""
    try:
        return f"{response.status_code}, {_quote(_failure_decoder.decode(response.content).error)}"
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return str(response.status_code)


def _read_outputs(answer: _Answer, binary: memoryview) -> list[Tensor]:
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


_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default a predictor that was down is not looked for again for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_GRPC_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# What gRPC itself says of a message above the predictor's limit, whichever way it goes.
_TOO_LARGE = "larger than max"
_CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents"}


class _Grpc:
    """Over gRPC, tensors as raw contents."""

    def __init__(self, arguments: Arguments) -> None:
        host = str(arguments.predictor_host)
        if ":" not in host.rpartition("]")[2]:
            # As over REST; gRPC's own default is 443 also without TLS.
            host += ":443" if arguments.predictor_use_ssl else ":80"
        self._model = arguments.model_name
        if arguments.predictor_use_ssl:
            # The variable that Python's own TLS, and so REST, follows.
            certificates = os.environ.get("SSL_CERT_FILE")
            roots = Path(certificates).read_bytes() if certificates else None
            self._channel = grpc.secure_channel(host, grpc.ssl_channel_credentials(roots), _GRPC_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(host, _GRPC_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def metadata(self, seconds: float) -> _Metadata:
        model = self._call(self._stub.ModelMetadata, messages.ModelMetadataRequest(name=self._model), seconds)
        return _Metadata(
            {tensor.name: tensor.datatype for tensor in model.inputs},
            [tensor.name for tensor in model.outputs],
            binary=True,
        )

    def infer(self, inputs: Sequence[Tensor], output: str | None, binary: bool, seconds: float) -> list[Tensor]:
        request = messages.ModelInferRequest(model_name=self._model)
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.to_binary()))
        if output is not None:
            request.outputs.add(name=output)
        answer = self._call(self._stub.ModelInfer, request, seconds)
        if not answer.raw_output_contents:
            return [_read_contents(tensor) for tensor in answer.outputs]
        if len(answer.raw_output_contents) != len(answer.outputs):
            raise PredictorAnswerError(
                f"the predictor answered with {len(answer.outputs)} outputs and the contents of "
                f"{len(answer.raw_output_contents)}"
            )
        return [
            tensor_from_binary(tensor.name, tensor.datatype, tensor.shape, memoryview(raw), "output")
            for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        ]

    def ready(self, seconds: float) -> bool:
        answer = self._call(self._stub.ModelReady, messages.ModelReadyRequest(name=self._model), seconds)
        return bool(answer.ready)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise _explain_grpc(error, method is self._stub.ModelInfer) from error
        except ValueError as error:
            raise PredictorUnavailableError("the server is shutting down") from error


def _explain_grpc(error: Any, infers: bool) -> PredictorError:
    code, words = error.code(), _quote(error.details() or "")
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            # The details may be of the network, which is not for clients.
            return PredictorUnavailableError("the predictor cannot be reached, or its model is not ready")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if infers and _TOO_LARGE in words:
            return PredictorRefusalError(f"the predictor refuses the tensors: {words}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return PredictorUnavailableError(f"the predictor is not available: {words}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return _too_slow()
        case _ if infers and code in _GRPC_REFUSED:
            return PredictorRefusalError(f"the predictor refuses the tensors: {words}")
    return PredictorAnswerError(f"the predictor answered with an error: {code.name}, {words}")


def _read_contents(tensor: Any) -> Tensor:
    if tensor.datatype not in _CONTENTS:
        raise PredictorAnswerError(
            f"the predictor's output {tensor.name} is {tensor.datatype}, which it must send as raw contents"
        )
    values = np.array(getattr(tensor.contents, _CONTENTS[tensor.datatype]))
    shape = check_shape(tensor.name, tensor.shape, len(values), "output")
    return Tensor(tensor.name, tensor.datatype, shape, values)
