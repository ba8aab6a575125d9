"""The route of Vertex AI's contract for containers, at the path that AIP_PREDICT_ROUTE names.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements. An instance is the `inputs` of a
pipeline, as in Hugging Face's container, or a whole body, as in those of Text Generation Inference and Text Embeddings
Inference. What `rawPredict` sends is the body of another protocol.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message

from protocol.clouds.invocations import FORMS, Invocations
from protocol.context import ServerContext
from protocol.http.body import Body, decode_json, hand_on, read_body
from protocol.http.disconnects import CLIENT, until_disconnect
from protocol.http.routing import Endpoint, with_errors
from protocol.huggingface.errors import render_hub_error
from protocol.huggingface.pipelines import INSTANCE_FORMS
from protocol.huggingface.routes import create_endpoint
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

# KServe's V1 has `instances` of its own, which its path keeps.
_V1_PATH = re.compile(r"/v1/models/[^/]+:predict")
# It compares two or more texts, and so is no item of a batch.
_COMPARISON = "source_sentence"


class VertexRequest(msgspec.Struct):
    """The body: instances, and the parameters of those that are `inputs`."""

    instances: list[Any] | None = None
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Predict:
    """The bodies that answer the instances.

    Attributes:
        batch: the `inputs` of all instances in one body; None if the instances have bodies of their own.
    """

    batch: bytes | None
    bodies: Sequence[bytes]


_decoder = msgspec.json.Decoder(VertexRequest)


def read_predict(data: bytes, limits: RequestLimits) -> Predict | None:
    """The instances of a body; None if it has none, and so is of another protocol.

    Raises:
        LimitExceededError: it exceeds a limit.
        InputError: it is no JSON object, or its instances are not as expected.
    """
    call = decode_json(data, _decoder, limits)
    instances = call.instances
    if instances is None:
        return None
    limits.check("max_client_batch_size", len(instances), "instances", "instances")
    if not instances:
        raise InputError("instances is empty; give at least one", "instances")
    if not any(map(_stands_alone, instances)):
        return Predict(msgspec.json.encode({"inputs": instances, "parameters": call.parameters}), ())
    return Predict(None, [_make_body(each, call.parameters, place) for place, each in enumerate(instances)])


def _stands_alone(instance: Any) -> bool:
    return isinstance(instance, dict) and (_COMPARISON in instance or _is_body(instance))


def _is_body(instance: Mapping[str, Any]) -> bool:
    return any(all(name in instance for name in names) for names in FORMS)


def _make_body(instance: Any, parameters: Mapping[str, Any] | None, position: int) -> bytes:
    """
    Raises:
        InputError: the body is not for parameters, or asks for a stream.
    """
    body = instance if isinstance(instance, dict) and _is_body(instance) else {"inputs": instance}
    if body.get("stream"):
        raise InputError(f"instances[{position}] has stream, which rawPredict is for", "instances")
    if parameters:
        own = body.get("parameters") or {}
        if "inputs" not in body or not isinstance(own, dict):
            raise InputError(f"parameters is for inputs, but instances[{position}] has none", "parameters")
        body = {**body, "parameters": {**parameters, **own}}
    return msgspec.json.encode(body)


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
    answer_batch, find_other = create_endpoint(context, INSTANCE_FORMS), _OtherRoute(others)

    async def predict(request: Request) -> Response:
        body = await read_body(request, limits)
        call = await body.check(lambda data: read_predict(data, limits))
        if call is None:
            if (other := find_other(request)) is None:
                return await invocations.answer(request, body)
            hand_on(request, body)
            return await other(request)
        body.data = b""
        if call.batch is not None:
            hand_on(request, Body(call.batch))
            answered = await answer_batch(request)
            return _render(bytes(answered.body)) if answered.status_code == HTTPStatus.OK else answered
        answers = [_answer(invocations, request, each) for each in call.bodies]
        responses = await until_disconnect(request, _gather(answers))
        failed = next((each for each in responses if each.status_code != HTTPStatus.OK), None)
        return failed or _render(b"[%b]" % b",".join(bytes(each.body) for each in responses))

    # The server may have other methods at this path.
    return [Route(path, with_errors(predict, render_hub_error), methods=["POST"])]


def _render(predictions: bytes) -> Response:
    return Response(b'{"predictions":%b}' % predictions, media_type="application/json")


async def _answer(invocations: Invocations, request: Request, data: bytes) -> Response:
    """The whole answer to one body."""
    # The work for all bodies ends with the client, not that for one.
    scope = {name: value for name, value in request.scope.items() if name != CLIENT}
    response = await invocations.answer(Request(scope, _wait), Body(data))
    if type(response) is Response:
        return response
    status, parts = HTTPStatus.OK.value, []

    async def collect(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)
        parts.append(message.get("body", b""))

    await response(scope, _wait, collect)
    return Response(b"".join(parts), status, media_type="application/json")


async def _wait() -> Message:
    """Receive nothing: the body is here, and who waits for the client is another."""
    await asyncio.Future()
    raise AssertionError("it is cancelled")


async def _gather(answers: Iterable[Coroutine[Any, Any, Response]]) -> list[Response]:
    """All answers; the first error ends the work for the others.

    Raises:
        Exception: that of one of them.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in answers]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class _OtherRoute:
    """Finds the endpoint that the server has otherwise for a request, and sets the values in its path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = [*routes]

    def __call__(self, request: Request) -> Endpoint | None:
        for route in self._routes:
            match, matched = route.matches(request.scope)
            if match is Match.FULL:
                request.scope["path_params"] = matched["path_params"]
                return route.endpoint
        return None
