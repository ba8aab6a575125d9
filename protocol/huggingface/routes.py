"""The Hugging Face inference protocol: `POST` of `inputs` and `parameters`, at the root or at a model's path.

It is that of the hub's inference service and of Inference Endpoints: the client `huggingface_hub.InferenceClient` posts
to exactly the URL that it is given. The model's task says what inputs are; a path may name a task too.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import read_body
from protocol.http.routing import Endpoint, post_route, with_errors
from protocol.huggingface.answers import ENCODER_FORMS, EncoderForm
from protocol.huggingface.calls import answer_call, read_call
from protocol.huggingface.errors import render_hub_error
from protocol.huggingface.tasks import HubTask, read_task, serves_task
from protocol.model_selection import ModelSelection, query_model
from runners.core.probe_paths import ROOT_PATH

# The paths of models and tasks, in the order in which they are tried.
PATHS = (
    "/models/{name:path}/pipeline/{task}", "/models/{name:path}", "/pipeline/{task}", "/pipeline/{task}/{name:path}",
)  # fmt: skip


def routes(context: ServerContext) -> list[Route]:
    """The routes at the root, whose GET is KServe's, and at the paths of models and tasks."""
    endpoint = create_endpoint(context, ENCODER_FORMS)
    return [
        post_route(ROOT_PATH, endpoint, render_hub_error, others=("GET", "HEAD")),
        *(post_route(path, endpoint, render_hub_error) for path in PATHS),
    ]


def create_endpoint(context: ServerContext, encoder_forms: Mapping[HubTask, EncoderForm]) -> Endpoint:
    """The endpoint of all paths, which may name a model (`name`) and a task (`task`).

    Args:
        encoder_forms: how encoders answer.
    """
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        values = request.path_params
        task = read_task(values["task"]) if "task" in values else None
        path, parameter = request.scope["path"], "?model=, or call /models/NAME"
        selection = ModelSelection(models, path, lambda runner: serves_task(runner, task), parameter)
        runner = selection.select(values.get("name") or query_model(request))
        body = await read_body(request, limits)
        call = await body.decode(lambda data: read_call(data, runner, task, encoder_forms, limits))
        return await answer_call(request, runner, call, limits)

    return with_errors(answer, render_hub_error)
