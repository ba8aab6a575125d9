"""KServe's V1 protocol: `/v1/models`, `:predict`, also with CloudEvents, `:explain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import check_kept_parameters, convert_json, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import NotFoundError, NotImplementedByModelError
from protocol.http.rendering import render
from protocol.http.routing import post_route
from protocol.kserve_v1.cloudevents import STRUCTURED_EVENT_TYPE, Event, answer_event, read_event
from protocol.kserve_v1.instances import AnyInstance, read_instance
from protocol.kserve_v1.predictions import render_predictions
from protocol.model_cards import model_card
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import check_generates
from runners.core.errors import InputError
from runners.core.models import find_probed_model, find_ready_model
from runners.core.predictions import TextInput
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options


class PredictRequest(msgspec.Struct):
    """The body of `:predict`. If it has both `inputs` and `instances`, `inputs` wins, as in KServe."""

    instances: list[AnyInstance] | str | UnsetType = UNSET
    inputs: list[AnyInstance] | str | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(PredictRequest)


def routes(context: ServerContext) -> list[Route]:
    """The routes of V1, and KServe's `GET /`."""
    models, limits = context.models, context.arguments

    async def alive(_: Request) -> Response:
        response = json_response({"status": "alive" if models.live else "stuck"})
        response.status_code = 200 if models.live else 503
        return response

    async def model_status(request: Request) -> Response:
        name = request.path_params["name"]
        runner = find_probed_model(models, name)
        # OpenAI's clients use the same path.
        return json_response({"name": runner.name, "ready": True, **model_card(models.find(name), name)})

    async def predict(request: Request) -> Response:
        runner = find_ready_model(models, request.path_params["name"])
        body = await read_body(request, limits, [STRUCTURED_EVENT_TYPE])
        event, texts, parameters = await body.decode(lambda data: _read(request, data, limits))
        check_generates(runner)
        options = resolve_options(runner, select_model_parameters(parameters), limits)
        predictions = await until_disconnect(request, runner.infer(texts, options))
        response = await render(render_predictions, predictions)
        return response if event is None else answer_event(event, response, request.path_params["name"])

    async def explain(request: Request) -> Response:
        find_ready_model(models, request.path_params["name"])
        raise NotImplementedByModelError("this server has no explainer; it offers :predict")

    async def unknown_verb(request: Request) -> Response:
        models.find(request.path_params["name"])
        verb = request.path_params["verb"]
        raise NotFoundError(f"there is no :{verb}; this server offers :predict and :explain")

    return [
        Route(ROOT_PATH, alive),
        post_route("/v1/models/{name:path}:predict", predict),
        post_route("/v1/models/{name:path}:explain", explain),
        Route("/v1/models/{name:path}", model_status),
        Route("/v1/models/{name:path}:{verb}", unknown_verb, methods=["POST"]),
    ]


def _read(
    request: Request, body: bytes, limits: RequestLimits
) -> tuple[Event | None, list[TextInput], Mapping[str, Any] | None]:
    """The event of a body, without its data, and the body's texts and parameters."""
    event = read_event(request, body, limits)
    if event is None:
        call = decode_json(body, _decoder, limits)
    elif isinstance(event.data, bytes):
        call = decode_json(event.data, _decoder, limits, "the event's data")
    else:
        call = convert_json(event.data, PredictRequest, "the event's data")
    limits.check("max_parameters", len(call.parameters or ()), "parameters", "parameters")
    for name, instances in (("inputs", call.inputs), ("instances", call.instances)):
        if isinstance(instances, list):
            limits.check("max_client_batch_size", len(instances), name, name)
    check_kept_parameters(body, (event and event.attributes, call.parameters), limits)
    return event and replace(event, data=None), _read_texts(call), call.parameters


def _read_texts(body: PredictRequest) -> list[TextInput]:
    key, instances = ("inputs", body.inputs) if body.inputs is not UNSET else ("instances", body.instances)
    if key == "inputs" and isinstance(body.instances, list):
        # The model does not read these, but a wrong one is an error of the request.
        for position, instance in enumerate(body.instances):
            read_instance(instance, f"instances[{position}]")
    if isinstance(instances, UnsetType):
        raise InputError("the body has neither 'instances' nor 'inputs'; give a list of texts in one of them")
    if isinstance(instances, str):
        return [TextInput(instances)]
    if not instances:
        raise InputError(f"'{key}' is empty; give at least one text")
    return [read_instance(instance, f"{key}[{position}]") for position, instance in enumerate(instances)]
