"""Predictors for the tests: this server itself behind a real port, and stand-ins that answer what a test wants."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import uvicorn
from numpy.typing import NDArray
from starlette.types import ASGIApp

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)
from tests.servers import free_port
from tests.waiting import wait_until

Compute = Callable[[dict[str, NDArray[Any]]], NDArray[Any]]


class RestPredictor:
    """An application on a port of its own; `requests` are the paths that were asked for."""

    def __init__(self, application: ASGIApp, port: int | None = None, **options: Any) -> None:
        self.requests: list[str] = []

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.requests.append(scope["path"])
            await application(scope, receive, send)

        self.port = port or free_port()
        self.host = f"127.0.0.1:{self.port}"
        config = uvicorn.Config(counted, port=self.port, log_level="critical", lifespan="off", **options)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started)

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()


class GrpcPredictor(GRPCInferenceServiceServicer):
    """A gRPC server whose model is a function of the tensors; `infers` are the requests it got."""

    def __init__(
        self,
        compute: Compute,
        inputs: dict[str, str] | None = None,
        outputs: tuple[str, ...] = ("logits",),
        datatype: str = "FP32",
        raw: bool = True,
    ) -> None:
        self._compute = compute
        self._inputs = inputs or {}
        self._outputs = outputs
        self._datatype = datatype
        self._raw = raw
        self.ready = True
        self.infers: list[Any] = []
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_GRPCInferenceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.host = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self) -> None:
        self._server.stop(None).wait()

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ModelReadyResponse(ready=self.ready)

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        answer = messages.ModelMetadataResponse(name=request.name)
        for name, datatype in self._inputs.items():
            answer.inputs.add(name=name, datatype=datatype, shape=[-1, -1])
        for name in self._outputs:
            answer.outputs.add(name=name, datatype=self._datatype, shape=[-1, -1])
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.infers.append(request)
        types = {"INT32": np.int32, "INT64": np.int64}
        tensors = {
            tensor.name: np.frombuffer(raw, types[tensor.datatype]).reshape(tensor.shape)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            logits = self._compute(tensors)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        answer = messages.ModelInferResponse(model_name=request.model_name)
        output = answer.outputs.add(name="logits", datatype=self._datatype, shape=logits.shape)
        flat = logits.ravel()
        match self._datatype, self._raw:
            case "FP32", False:
                output.contents.fp32_contents.extend(flat.tolist())
            case "FP64", False:
                output.contents.fp64_contents.extend(flat.tolist())
            case "BF16", _:
                answer.raw_output_contents.append((flat.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())
            case _:
                dtype = {"FP16": "<f2", "FP32": "<f4", "FP64": "<f8"}[self._datatype]
                answer.raw_output_contents.append(flat.astype(dtype).tobytes())
        return answer
