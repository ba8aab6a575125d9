"""The Hugging Face inference protocol: `POST` of `inputs` and `parameters`, at the root or at a model's path.

It is that of the hub's inference service and of Inference Endpoints: the client `huggingface_hub.InferenceClient` posts
to exactly the URL that it is given. The model's task says what inputs are; a path may name a task too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import check_kept_parameters, convert_json, decode_json, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import render
from protocol.http.routing import post_route, with_errors
from protocol.huggingface.answers import ENCODER_CALLS
from protocol.huggingface.errors import render_hub_error
from protocol.huggingface.parameters import read_parameters
from protocol.huggingface.requests import EncoderRequest
from protocol.huggingface.tasks import HubTask, choose_task, read_task, serves_task
from protocol.model_selection import ModelSelection, query_model
from runners.core.errors import InputError
from runners.core.health_paths import KSERVE_LIVE_PATH
from runners.core.predictions import Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner

# The paths of models and tasks, in the order in which they are tried.
PATHS = (
    "/models/{name:path}/pipeline/{task}", "/models/{name:path}", "/pipeline/{task}", "/pipeline/{task}/{name:path}",
)  # fmt: skip
_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class _Call:
    task: HubTask
    body: EncoderRequest
    texts: Sequence[TextInput | TokenInput]
    options: Mapping[str, Any]


def routes(context: ServerContext) -> list[Route]:
    """The routes at the root, whose GET is KServe's, and at the paths of models and tasks."""
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        values = request.path_params
        task = read_task(values["task"]) if "task" in values else None
        path, parameter = request.scope["path"], "?model=, or call /models/NAME"
        selection = ModelSelection(models, path, lambda runner: serves_task(runner, task), parameter)
        runner = selection.select(values.get("name") or query_model(request))
        body = await read_body(request, limits)
        call = await body.decode(lambda data: _read(data, runner, task, limits))
        options = resolve_options(runner, call.options, limits)
        predictions = await until_disconnect(request, runner.infer(call.texts, options))

        def render_answer(answered: Sequence[Prediction]) -> Any:
            return ENCODER_CALLS[call.task].render(call.body, answered, options, runner)

        return await render(render_answer, predictions)

    endpoint = with_errors(answer, render_hub_error)
    return [
        post_route(KSERVE_LIVE_PATH, endpoint, render_hub_error, others=("GET", "HEAD")),
        *(post_route(path, endpoint, render_hub_error) for path in PATHS),
    ]


def _read(data: bytes, runner: Runner, task: HubTask | None, limits: RequestLimits) -> _Call:
    """
    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: it is malformed, or has a field that this server does not implement.
    """
    fields = decode_json(data, _decoder, limits)
    task = task or choose_task(runner, fields)
    call = ENCODER_CALLS[task]
    if fields.get("stream"):
        raise InputError(f"stream is not supported for {task}", "stream")
    parameters = read_parameters(fields, call.parameters, task, limits)
    check_kept_parameters(data, parameters, limits)
    inputs = {"inputs": fields["inputs"]} if "inputs" in fields else {}
    body = convert_json({**inputs, "parameters": parameters}, call.request)
    return _Call(task, body, body.read_texts(limits), body.read_options(runner.default_options.answer, limits))
