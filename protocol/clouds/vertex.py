"""The route of Vertex AI's contract for containers, at the path that AIP_PREDICT_ROUTE names.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements. An instance is the `inputs` of a
pipeline, as in Hugging Face's container, or a whole body, as in those of Text Generation Inference and Text Embeddings
Inference. What `rawPredict` sends is the body of another protocol.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message

from protocol.clouds.invocations import FORMS, Invocations
from protocol.context import ServerContext
from protocol.http.body import (
    Body,
    check_kept_parameters,
    decode_json,
    hand_on,
    is_json,
    make_fields_decoder,
    read_body,
)
from protocol.http.disconnects import CLIENT, until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER
from protocol.http.routing import Endpoint, with_errors
from protocol.huggingface.errors import render_hub_error
from protocol.huggingface.pipelines import INSTANCE_FORMS
from protocol.huggingface.routes import create_endpoint
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

# KServe's V1 has `instances` of its own, which its path keeps.
_V1_PATH = re.compile(r"/v1/models/[^/]+:predict")
_JSON = "application/json"
# So many bodies are answered at once. Each counts as a request, and a queue of batches fills with fewer.
_AT_ONCE = 16
# It compares two or more texts, and so is no item of a batch.
_COMPARISON = "source_sentence"


class VertexRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body: instances, and the parameters of those that are `inputs`."""

    instances: list[str | dict[str, Any] | list[Any]]
    parameters: dict[str, Any] | None = None

    def batch(self) -> bytes | None:
        """The body of all instances, whose `inputs` they are; None if some have bodies of their own."""
        if any(map(_stands_alone, self.instances)):
            return None
        return msgspec.json.encode({"inputs": self.instances, "parameters": self.parameters})

    def make_body(self, position: int) -> bytes:
        """The body of an instance."""
        body = _to_body(self.instances[position])
        if self.parameters:
            body = {**body, "parameters": {**self.parameters, **(body.get("parameters") or {})}}
        return msgspec.json.encode(body)

    def check(self, data: bytes, limits: RequestLimits) -> None:
        """
        Args:
            data: the encoded body.

        Raises:
            LimitExceededError: there are more instances, or larger parameters, than the operator allows.
            InputError: there are no instances, one asks for a stream, or the parameters are not for one.
        """
        limits.check("max_client_batch_size", len(self.instances), "instances", "instances")
        if not self.instances:
            raise InputError("instances is empty; give at least one", "instances")
        # Each body gets a copy.
        check_kept_parameters(data, self.parameters, limits)
        for position, body in enumerate(map(_to_body, self.instances)):
            if body.get("stream"):
                raise InputError(f"instances[{position}] has stream, which rawPredict is for", "instances")
            if self.parameters and ("inputs" not in body or not isinstance(body.get("parameters") or {}, dict)):
                raise InputError(f"parameters is for inputs, but instances[{position}] has none", "parameters")


# What tells whether a body is Vertex AI's.
_instances_decoder = make_fields_decoder(["instances"])
_decoder = msgspec.json.Decoder(VertexRequest)


def _has_instances(data: bytes, limits: RequestLimits) -> bool:
    """
    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: it is no JSON object.
    """
    return decode_json(data, _instances_decoder, limits).instances is not None


def read_predict(data: bytes, limits: RequestLimits) -> tuple[VertexRequest, bytes | None]:
    """The instances of a body, and the body of all of them, as `VertexRequest.batch` has it.

    Raises:
        LimitExceededError: it exceeds a limit.
        InputError: its instances or parameters are not as expected.
    """
    call = decode_json(data, _decoder, limits)
    call.check(data, limits)
    return call, call.batch()


def _stands_alone(instance: Any) -> bool:
    return isinstance(instance, dict) and (_COMPARISON in instance or _is_body(instance))


def _is_body(instance: Mapping[str, Any]) -> bool:
    return any(all(name in instance for name in names) for names in FORMS)


def _to_body(instance: Any) -> dict[str, Any]:
    return instance if isinstance(instance, dict) and _is_body(instance) else {"inputs": instance}


def serves_path(path: str) -> bool:
    """Whether a path is Vertex AI's, although it may be this server's too."""
    return _V1_PATH.fullmatch(path) is None


def routes(context: ServerContext, others: Iterable[Route]) -> list[Route]:
    """The route of predictions; none without such a path, or if it is V1's.

    Args:
        others: the routes of this server; at their paths, bodies without instances are theirs.
    """
    path = context.predict_route
    if path is None or not serves_path(path):
        return []
    limits, invocations = context.arguments, Invocations(context)
    answer_batch = create_endpoint(context, INSTANCE_FORMS)
    other, path_params = _find_other(others, path)

    async def predict(request: Request) -> Response:
        request.scope["path_params"] = path_params
        if other is not None and not is_json(request):
            return await other(request)
        body = await read_body(request, limits)
        try:
            has_instances = await body.check(lambda data: _has_instances(data, limits))
        except InputError:
            # The other endpoint has its own form of errors.
            if other is None:
                raise
            has_instances = False
        if has_instances:
            return await answer_instances(request, body)
        if other is None:
            return await invocations.answer(request, body)
        hand_on(request, body)
        return await other(request)

    async def answer_instances(request: Request, body: Body) -> Response:
        call, batch = await body.check(lambda data: read_predict(data, limits))
        body.data = b""
        if batch is not None:
            hand_on(request, Body(batch))
            answered = await answer_batch(request)
            return _render(bytes(answered.body)) if answered.status_code == HTTPStatus.OK else answered
        predictions = await until_disconnect(request, _Instances(invocations, request, call, limits).answer())
        return predictions if isinstance(predictions, Response) else _render(b"[%b]" % b",".join(predictions))

    # The server may have other methods at this path.
    return [Route(path, with_errors(predict, render_hub_error), methods=["POST"])]


def _render(predictions: bytes) -> Response:
    return Response(b'{"predictions":%b}' % predictions, media_type=_JSON)


class _FailedInstanceError(Exception):
    """An instance cannot be answered."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self.response = response


class _Instances:
    """Answers instances that have bodies of their own, a few at a time."""

    def __init__(self, invocations: Invocations, request: Request, call: VertexRequest, limits: RequestLimits) -> None:
        self._invocations, self._request, self._call, self._limits = invocations, request, call, limits
        self._answers: dict[int, bytes] = {}
        self._characters = 0
        self._positions = iter(range(len(call.instances)))

    async def answer(self) -> Response | list[bytes]:
        """The answers, or the error of an instance, which ends the work for the others.

        Raises:
            LimitExceededError: the answers have more numbers than the operator allows.
            InputError: an answer is not JSON.
        """
        count = min(_AT_ONCE, len(self._call.instances), self._limits.max_concurrent_requests)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._answer_next())
        except ExceptionGroup as errors:
            first = errors.exceptions[0]
            if isinstance(first, _FailedInstanceError):
                return first.response
            raise first from None
        return [answer for _, answer in sorted(self._answers.items())]

    async def _answer_next(self) -> None:
        for position in self._positions:
            response = await self._answer_one(self._call.make_body(position))
            if response.status_code != HTTPStatus.OK:
                raise _FailedInstanceError(response)
            if response.headers.get("content-type", "").partition(";")[0] != _JSON:
                raise InputError(f"instances[{position}] asks for an answer that is not JSON", "instances")
            self._answers[position] = bytes(response.body)
            self._characters += len(response.body)
            numbers = self._characters // CHARACTERS_A_NUMBER
            self._limits.check("max_answer_numbers", numbers, "numbers of the predictions", "instances")

    async def _answer_one(self, data: bytes) -> Response:
        """The whole answer to a body."""
        # The work for all bodies ends with the client, not that for one.
        scope = {name: value for name, value in self._request.scope.items() if name != CLIENT}
        # The server's own path may name the model.
        model = self._request.path_params.get("name")
        response = await self._invocations.answer(Request(scope, _wait), Body(data), model)
        if type(response) is Response:
            return response
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await response(scope, _wait, collect)
        start, *bodies = messages
        collected = Response(b"".join(each.get("body", b"") for each in bodies), start["status"])
        collected.raw_headers = [*start["headers"]]
        return collected


async def _wait() -> Message:
    """Receive nothing: the body is here, and who waits for the client is another."""
    await asyncio.Future()
    raise AssertionError("it is cancelled")


def _find_other(routes: Iterable[Route], path: str) -> tuple[Endpoint | None, dict[str, Any]]:
    """The endpoint that the server has otherwise for POST at a path, and the values in the path."""
    scope = {"type": "http", "method": "POST", "path": path}
    for route in routes:
        match, matched = route.matches(scope)
        if match is Match.FULL:
            return route.endpoint, matched["path_params"]
    return None, {}
