"""The calls that Weaviate's module text2vec-transformers makes to the container that embeds for it.

https://github.com/weaviate/t2v-transformers-models and, in weaviate/weaviate,
usecases/modulecomponents/clients/transformers. Its probes, /.well-known/live and /.well-known/ready, are among those of
the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import Body, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER, render
from protocol.http.routing import post_route
from protocol.model_selection import ModelSelection, query_model, runs_on_encoder
from protocol.prompt_names import DOCUMENT_PROMPTS, QUERY_PROMPTS, find_prompt
from protocol.vectors import stack_vectors
from runners.core.errors import InputError
from runners.core.number_types import PositiveInt
from runners.core.predictions import Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task

VECTORS_PATH, META_PATH = "/vectors", "/meta"


class VectorConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How a text is embedded. The pooling is the model's own, which Weaviate calls by its default, `masked_mean`."""

    pooling_strategy: Literal["masked_mean", ""] | None = None
    task_type: Literal["query", "passage", ""] | None = None
    dimensions: PositiveInt | None = None


class VectorsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `/vectors`: a text, or texts. Weaviate sends fields of the answer too, which have no effect."""

    text: str | None = None
    texts: list[str] | None = None
    config: VectorConfig | None = None
    dims: Any = None
    vector: Any = None
    error: Any = None

    def read_texts(self, limits: RequestLimits) -> list[str]:
        """
        Raises:
            LimitExceededError: there are more texts than the operator allows.
            InputError: there are none.
        """
        if (self.text is None) is (self.texts is None):
            raise InputError("give one of text and texts")
        if self.texts is None:
            return [self.text or ""]
        if not self.texts:
            raise InputError("texts is empty; give at least one", "texts")
        limits.check("max_client_batch_size", len(self.texts), "texts", "texts")
        return self.texts

    def parameters(self, runner: Runner) -> dict[str, Any]:
        """The request's options, under the names of the other protocols' `parameters`."""
        config = self.config or VectorConfig()
        # Without a type a text is a document, as in that container.
        prompt = find_prompt(runner, QUERY_PROMPTS if config.task_type == "query" else DOCUMENT_PROMPTS)
        named = {"dimensions": config.dimensions, "prompt_name": prompt}
        return {"normalize": True, **{name: value for name, value in named.items() if value is not None}}


_decoder = msgspec.json.Decoder(VectorsRequest)


def routes(context: ServerContext) -> list[Route]:
    """The routes of the two calls; errors have the form of V1, as those of that container."""
    models, limits = context.models, context.arguments

    def select(request: Request) -> Runner:
        selection = ModelSelection(models, request.scope["path"], embeds, "?model=")
        return selection.select(query_model(request))

    async def answer_vectors(request: Request) -> Response:
        runner = select(request)
        return await until_disconnect(request, _answer_vectors(runner, await read_body(request, limits), limits))

    async def answer_meta(request: Request) -> Response:
        runner = select(request)
        return json_response({"model": runner.name, "version": runner.version, **runner.properties})

    return [post_route(VECTORS_PATH, answer_vectors), Route(META_PATH, answer_meta)]


def embeds(runner: Runner) -> bool:
    """Whether a model answers the calls."""
    return runs_on_encoder(runner, Task.TEXT_EMBEDDING)


async def _answer_vectors(runner: Runner, body: Body, limits: RequestLimits) -> Response:
    call = await body.decode(lambda data: decode_json(data, _decoder, limits))
    texts = call.read_texts(limits)
    options = resolve_options(runner, call.parameters(runner), limits)
    predictions = await runner.infer([TextInput(text) for text in texts], options)

    def render_vectors(answers: Sequence[Prediction]) -> dict[str, Any]:
        vectors = stack_vectors(answers)
        # Weaviate reads `dims`; the container of Weaviate writes `dim`.
        if call.texts is None:
            size = vectors.shape[1]
            return {"text": texts[0], "vector": vectors[0], "dim": size, "dims": size}
        return {"vectors": vectors, "dims": vectors.shape[1]}

    return await render(render_vectors, predictions, body.size // CHARACTERS_A_NUMBER)
