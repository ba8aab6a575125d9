"""Cohere's calls that embed and tokenize, for its clients; its `rerank` is in `protocol/openai/ranking.py`.

https://docs.cohere.com/reference/about. The models are those of this server's own engine; vLLM's generators tokenize.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.cohere.embeddings import ENCODERS
from protocol.cohere.errors import render_cohere_error
from protocol.cohere.requests import CohereDetokenizeRequest, CohereEmbedRequest, CohereTokenizeRequest
from protocol.context import ServerContext
from protocol.http.body import Body, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER, count_numbers, render, render_off_loop
from protocol.http.routing import post_route, with_errors
from protocol.model_selection import ModelSelection, SelectModel, runs_on_encoder
from protocol.text_truncation import truncate_texts
from protocol.vectors import stack_vectors
from runners.core.errors import InputError
from runners.core.predictions import Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task
from runners.core.tokens import TokenizeOptions

_TOKENS = TokenizeOptions(add_special_tokens=False, details=True)

_embed_decoder = msgspec.json.Decoder(CohereEmbedRequest)
_tokenize_decoder = msgspec.json.Decoder(CohereTokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(CohereDetokenizeRequest)


@dataclass(frozen=True, slots=True)
class CohereCall:
    """What a path calls.

    Attributes:
        version: the version of the API, which answers name.
        answer: decodes the body, selects the model that it names, and answers.
        serves: whether a model answers it.
    """

    version: str
    answer: Callable[[SelectModel, Body, RequestLimits, str], Coroutine[Any, Any, Response]]
    serves: Callable[[Runner], bool]


def routes(context: ServerContext) -> list[Route]:
    """The routes of the calls."""
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        path = request.scope["path"]
        call = CALLS[path]
        selection = ModelSelection(models, path, call.serves, "model in the body")
        body = await read_body(request, limits)
        return await until_disconnect(request, call.answer(selection.select, body, limits, call.version))

    return [post_route(path, with_errors(answer, render_cohere_error), render_cohere_error) for path in CALLS]


async def _embed(select: SelectModel, body: Body, limits: RequestLimits, version: str) -> Response:
    call = await body.decode(lambda data: decode_json(data, _embed_decoder, limits))
    runner = select(call.model)
    original_texts = call.read_texts(limits)
    options = resolve_options(runner, call.parameters(runner), limits)
    texts = original_texts
    if call.max_tokens is not None:
        texts = await truncate_texts(runner, original_texts, call.max_tokens)
        if call.truncate == "NONE" and texts != original_texts:
            position = next(index for index, text in enumerate(original_texts) if texts[index] != text)
            raise InputError(f"texts[{position}] has more than {call.max_tokens} tokens (max_tokens)", "max_tokens")
    predictions = await runner.infer([TextInput(text) for text in texts], options)
    types = [*dict.fromkeys(call.embedding_types or ["float"])]
    # The first version answers with the vectors alone, unless types are named.
    is_plain = version == "1" and call.embedding_types is None

    def render_vectors(answers: Sequence[Prediction]) -> dict[str, Any]:
        vectors = stack_vectors(answers)
        by_type = {name: ENCODERS[name](vectors) for name in types}
        return {
            "id": str(uuid.uuid4()),
            "response_type": "embeddings_floats" if is_plain else "embeddings_by_type",
            "embeddings": by_type["float"] if is_plain else by_type,
            "texts": original_texts,
            "meta": _describe(version, sum(answer.tokens for answer in answers)),
        }

    numbers = sum(map(count_numbers, predictions)) * (len(types) - 1) + body.size // CHARACTERS_A_NUMBER
    return await render(render_vectors, predictions, numbers)


async def _tokenize(select: SelectModel, body: Body, limits: RequestLimits, version: str) -> Response:
    call = await body.decode(lambda data: decode_json(data, _tokenize_decoder, limits))
    [tokenized] = await select(call.model).tokenize([call.text], _TOKENS)
    values = 2 * len(tokenized.ids)
    answer = {"tokens": tokenized.ids, "token_strings": tokenized.strings, "meta": _describe(version)}
    return await render_off_loop(lambda: json_response(answer, values), values)


async def _detokenize(select: SelectModel, body: Body, limits: RequestLimits, version: str) -> Response:
    call = await body.decode(lambda data: decode_json(data, _detokenize_decoder, limits))
    [text] = await select(call.model).detokenize([call.tokens])
    return json_response({"text": text, "meta": _describe(version)})


def _describe(version: str, tokens: int | None = None) -> dict[str, Any]:
    """The `meta` of an answer."""
    billed = {} if tokens is None else {"billed_units": {"input_tokens": tokens}}
    return {"api_version": {"version": version}, **billed}


def _embeds(runner: Runner) -> bool:
    return runs_on_encoder(runner, Task.TEXT_EMBEDDING)


def _tokenizes(_: Runner) -> bool:
    return True


# By path.
CALLS: Mapping[str, CohereCall] = {
    "/v1/embed": CohereCall("1", _embed, _embeds),
    "/v2/embed": CohereCall("2", _embed, _embeds),
    "/v1/tokenize": CohereCall("1", _tokenize, _tokenizes),
    "/v1/detokenize": CohereCall("1", _detokenize, _tokenizes),
}
