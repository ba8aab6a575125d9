"""The routes of Text Embeddings Inference, for its clients, at the root as in that server.

https://huggingface.github.io/text-embeddings-inference. Its `/health` and `/metrics` are those of the whole server, and
its `/v1/embeddings` is OpenAI's. A call that the model's task does not support is a 424, as there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import Body, json_response, read_body
from protocol.http.routing import get_route, post_route, with_errors
from protocol.model_selection import ModelSelection, query_model
from protocol.tei.embed import answer_embed, answer_embed_all, answer_embed_sparse
from protocol.tei.errors import render_tei_error
from protocol.tei.info import describe_model
from protocol.tei.predict import answer_predict
from protocol.tei.rerank import answer_rerank
from protocol.tei.similarity import answer_similarity
from protocol.tei.tokenize import answer_decode, answer_tokenize
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.task import Task

INFO = "/info"
_EVERY_TASK = frozenset(Task)


@dataclass(frozen=True, slots=True)
class TeiCall:
    """A call.

    Attributes:
        tasks: the tasks of the models that answer it.
    """

    tasks: frozenset[Task]
    answer: Callable[[Request, Runner, Body, RequestLimits], Awaitable[Response]]


# By path.
CALLS: Mapping[str, TeiCall] = {
    "/embed": TeiCall(frozenset({Task.TEXT_EMBEDDING}), answer_embed),
    "/embed_all": TeiCall(frozenset({Task.TEXT_EMBEDDING}), answer_embed_all),
    "/embed_sparse": TeiCall(frozenset({Task.SPARSE_EMBEDDING}), answer_embed_sparse),
    "/similarity": TeiCall(frozenset({Task.TEXT_EMBEDDING}), answer_similarity),
    "/predict": TeiCall(
        frozenset({Task.SEQUENCE_CLASSIFICATION, Task.TEXT_RANKING, Task.ZERO_SHOT_CLASSIFICATION}), answer_predict
    ),
    "/rerank": TeiCall(frozenset({Task.TEXT_RANKING}), answer_rerank),
    "/tokenize": TeiCall(_EVERY_TASK, answer_tokenize),
    "/decode": TeiCall(_EVERY_TASK, answer_decode),
}


def routes(context: ServerContext) -> list[Route]:
    """The route of each call, and that of `/info`."""
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        path = request.scope["path"]
        call = CALLS[path]
        selection = ModelSelection(models, path, lambda runner: serves(runner, call), "?model=")
        runner = selection.select(query_model(request))
        return await call.answer(request, runner, await read_body(request, limits), limits)

    async def info(request: Request) -> Response:
        runner = ModelSelection(models, INFO, lambda _: True, "?model=").select(query_model(request))
        return json_response(describe_model(runner, models.find(runner.name).declaration.arguments))

    answering, informing = with_errors(answer, render_tei_error), with_errors(info, render_tei_error)
    return [
        *(post_route(path, answering, render_tei_error) for path in CALLS),
        get_route(INFO, informing, render_tei_error),
    ]


def serves(runner: Runner, call: TeiCall) -> bool:
    """Whether a model answers a call."""
    # The task of a generator is unknown until it is loaded.
    return runner.task in call.tasks or (runner.generator is not None and call.tasks == _EVERY_TASK)
