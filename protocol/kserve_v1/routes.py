"""KServe's V1 protocol: `/v1/models`, `:predict`, also with CloudEvents, `:explain`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import repeat
from typing import Any

import msgspec
import orjson
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.class_scores import class_keys, class_rows, vocabulary_entries
from protocol.context import ServerContext
from protocol.http.body import check_kept_parameters, convert_json, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import NotFoundError, NotImplementedByModelError
from protocol.http.rendering import render
from protocol.http.routing import post_route
from protocol.kserve_v1.cloudevents import STRUCTURED_EVENT_TYPE, Event, answer_event, read_event
from protocol.model_cards import model_card
from protocol.output_tensors import extra_tensors
from protocol.records import list_records
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import check_generates
from protocol.tensors import Tensor
from runners.core.errors import InputError
from runners.core.models import find_probed_model, find_ready_model
from runners.core.predictions import ClassScores, Numbers, Prediction, Records, Text, TextInput, VocabularyScores
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options


class Instance(msgspec.Struct, forbid_unknown_fields=True):
    """A text, a pair of texts, a question with its context, or a text that is split into words."""

    text: str | UnsetType = UNSET
    text_pair: str | None = None
    words: list[str] | UnsetType = UNSET
    question: str | UnsetType = UNSET
    context: str | UnsetType = UNSET

    def read(self) -> TextInput:
        """
        Raises:
            ValueError: there is no text, or there are several.
        """
        match (self.text, self.text_pair, self.words, self.question, self.context):
            case (str(text), pair, msgspec.UNSET, msgspec.UNSET, msgspec.UNSET):
                return TextInput(text, pair)
            case (msgspec.UNSET, None, list(words), msgspec.UNSET, msgspec.UNSET):
                return TextInput(" ".join(words), words=tuple(words))
            case (msgspec.UNSET, None, msgspec.UNSET, str(question), str(context)):
                return TextInput(question, context)
        raise ValueError("must have either text, which text_pair may follow, or words, or question and context")


class PredictRequest(msgspec.Struct):
    """The body of `:predict`. If it has both `inputs` and `instances`, `inputs` wins, as in KServe."""

    instances: list[str | Instance | list[str]] | str | UnsetType = UNSET
    inputs: list[str | Instance | list[str]] | str | UnsetType = UNSET
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
        response = await render(_render, predictions)
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
            _read_text(instance, "instances", position)
    if isinstance(instances, UnsetType):
        raise InputError("the body has neither 'instances' nor 'inputs'; give a list of texts in one of them")
    if isinstance(instances, str):
        return [TextInput(instances)]
    if not instances:
        raise InputError(f"'{key}' is empty; give at least one text")
    return [_read_text(instance, key, position) for position, instance in enumerate(instances)]


def _read_text(instance: str | Instance | list[str], key: str, position: int) -> TextInput:
    match instance:
        case str():
            return TextInput(instance)
        case Instance():
            try:
                return instance.read()
            except ValueError as error:
                raise InputError(f"{key}[{position}] {error}") from error
        case [text, pair]:
            return TextInput(text, pair)
    raise InputError(f"{key}[{position}] has {len(instance)} texts; a pair is a list of two")


def _render(predictions: Sequence[Prediction]) -> dict[str, Any]:
    payload: dict[str, Any] = {"predictions": map(_render_one, predictions)}
    if tensors := extra_tensors(predictions):
        payload["outputs"] = [_render_tensor(tensor) for tensor in tensors]
    return payload


def _render_one(prediction: Prediction) -> Any:
    match prediction.main:
        case Text(value):
            return value
        case Numbers(values):
            return values if values.ndim else values.item()
        case ClassScores(values) as scores:
            keys = class_keys(values.shape[-1])
            rows = map(dict, map(zip, repeat(keys), class_rows(scores)))
            return next(rows) if values.ndim == 1 else rows
        case Records() as records:
            return list_records(records)
        case VocabularyScores() as scores:
            masks = vocabulary_entries(scores, '{"', '":', '"')
            return ((orjson.Fragment(",".join(entries)) for entries in mask) for mask in masks)


def _render_tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": tensor.flat}
