"""The ranking that Elasticsearch's inference service `hugging_face` asks for, at the root as of an Inference Endpoint.

In elastic/elasticsearch: x-pack/plugin/inference/.../services/huggingface/request/rerank/HuggingFaceRerankRequestEntity
and response/HuggingFaceRerankResponseEntity, which refuses fields that it does not know. Its embeddings and chats are
calls of other protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import decode_json, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER, render
from protocol.http.routing import post_route
from protocol.model_selection import ModelSelection, query_model, runs_on_encoder
from protocol.rankings import list_ranked, read_scores
from runners.core.number_types import PositiveInt
from runners.core.predictions import RELEVANCE, Prediction, TextInput
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task


class ElasticRerankRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body. The answer has the `top_n` best documents, or all of them. A document is one chunk."""

    query: str
    documents: Annotated[list[str], Meta(min_length=1)]
    return_documents: bool = False
    top_n: PositiveInt | None = None
    max_chunks_per_doc: Literal[1] | None = None


_decoder = msgspec.json.Decoder(ElasticRerankRequest)


def ranks(runner: Runner) -> bool:
    """Whether a model answers the call."""
    return runs_on_encoder(runner, Task.TEXT_RANKING)


def routes(context: ServerContext) -> list[Route]:
    """The route, which `protocol/shared_routes.py` shares with Hugging Face's protocol, as the form of errors."""
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        body = await read_body(request, limits)
        call = await body.decode(lambda data: decode_json(data, _decoder, limits))
        limits.check("max_client_batch_size", len(call.documents), "documents", "documents")
        selection = ModelSelection(models, request.scope["path"], ranks, "?model=")
        runner = selection.select(query_model(request))
        options = replace(resolve_options(runner, None, limits), outputs=frozenset({RELEVANCE}))
        pairs = [TextInput(call.query, text) for text in call.documents]
        predictions = await until_disconnect(request, runner.infer(pairs, options))

        def render_scores(answers: Sequence[Prediction]) -> Any:
            scores = read_scores(answers, RELEVANCE)
            return list_ranked(scores, call.documents if call.return_documents else None, call.top_n)

        return await render(render_scores, predictions, body.size // CHARACTERS_A_NUMBER)

    return [post_route(ROOT_PATH, answer)]
