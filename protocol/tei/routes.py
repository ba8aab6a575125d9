"""The calls of Text Embeddings Inference: `/embed`, `/predict` and `/rerank`, for its clients.

https://huggingface.github.io/text-embeddings-inference. Two things differ: long texts are truncated unless `truncate`
is false, which is that server's default; and a call that the model's task does not support is a 400.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import Body, decode_json, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER, render
from protocol.http.routing import post_route, with_errors
from protocol.model_selection import ModelSelection, query_model
from protocol.tei.errors import render_tei_error
from protocol.text_inputs import Inputs, read_text_inputs
from protocol.vectors import list_vectors, sort_by_score
from runners.core.answer_options import TruncationSide
from runners.core.errors import InputError
from runners.core.predictions import Prediction, Records, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task

# The tasks that answer each path.
TASKS = {
    "/embed": (Task.TEXT_EMBEDDING,),
    "/predict": (Task.SEQUENCE_CLASSIFICATION, Task.TEXT_RANKING, Task.ZERO_SHOT_CLASSIFICATION),
    "/rerank": (Task.TEXT_RANKING,),
}

_SIDES = frozenset(TruncationSide)


class _TeiRequest(msgspec.Struct, kw_only=True):
    truncate: bool | None = None
    truncation_direction: str | None = None

    def parameters(self, **more: Any) -> dict[str, Any]:
        """The request's options, under the names of the other protocols' `parameters`.

        Raises:
            InputError: `truncation_direction` is no side.
        """
        if self.truncate is not None:
            more["truncation"] = self.truncate
        if self.truncation_direction is not None:
            side = self.truncation_direction.lower()
            if side not in _SIDES:
                raise InputError(f"truncation_direction must be Left or Right, not {self.truncation_direction[:20]!r}")
            more["truncation_side"] = side
        return more


class TeiEmbedRequest(_TeiRequest, kw_only=True):
    """The body of `/embed`. `inputs` is a text, texts, or token ids; `normalize` scales vectors to length 1."""

    inputs: Inputs
    normalize: bool = True
    prompt_name: str | None = None
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


class TeiPredictRequest(_TeiRequest, kw_only=True):
    """The body of `/predict`. `inputs` is a text, a pair of texts, or a list of lists of one or two texts."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False


class TeiRerankRequest(_TeiRequest, kw_only=True):
    """The body of `/rerank`."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False


_embed_decoder = msgspec.json.Decoder(TeiEmbedRequest)
_predict_decoder = msgspec.json.Decoder(TeiPredictRequest)
_rerank_decoder = msgspec.json.Decoder(TeiRerankRequest)


def routes(context: ServerContext) -> list[Route]:
    """The three routes, at the root as in that server."""
    models, limits = context.models, context.arguments

    async def answer(request: Request) -> Response:
        path = request.scope["path"]
        selection = ModelSelection(models, path, lambda runner: runner.task in TASKS[path], "?model=")
        runner = selection.select(query_model(request))
        return await _ANSWERS[path](request, runner, await read_body(request, limits), limits)

    return [post_route(path, with_errors(answer, render_tei_error), render_tei_error) for path in TASKS]


async def _embed(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    def read(data: bytes) -> tuple[TeiEmbedRequest, Sequence[TextInput | TokenInput]]:
        call = decode_json(data, _embed_decoder, limits)
        return call, read_text_inputs(call.inputs, "inputs", limits)

    call, inputs = await body.decode(read)
    fields = {"dimensions": call.dimensions, "prompt_name": call.prompt_name}
    more = {name: value for name, value in fields.items() if value is not None}
    predictions = await _infer(request, runner, inputs, call.parameters(normalize=call.normalize, **more), limits)
    return await render(lambda answers: np.stack(list_vectors(answers)), predictions)


async def _predict(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    def read(data: bytes) -> tuple[TeiPredictRequest, list[TextInput], bool]:
        call = decode_json(data, _predict_decoder, limits)
        if isinstance(call.inputs, list):
            limits.check("max_client_batch_size", len(call.inputs), "inputs")
        return call, *_read_texts(call.inputs)

    call, texts, single = await body.decode(read)
    # The operator's `threshold` would leave out classes.
    more = {"top_k": limits.max_top_k, "threshold": None, **({"function_to_apply": "none"} if call.raw_scores else {})}
    predictions = await _infer(request, runner, texts, call.parameters(**more), limits)

    def render_classes(answers: Sequence[Prediction]) -> Any:
        return _list_classes(answers[0]) if single else map(_list_classes, answers)

    return await render(render_classes, predictions)


def _list_classes(prediction: Prediction) -> list[dict[str, Any]]:
    columns = _columns(prediction)
    return [{"score": score, "label": label} for score, label in zip(columns["score"], columns["label"], strict=True)]


def _read_texts(inputs: str | list[str | list[str]]) -> tuple[list[TextInput], bool]:
    """The texts and pairs, and whether the body has a single one outside of a list.

    Raises:
        InputError: the value has another form.
    """
    match inputs:
        case str(text):
            return [TextInput(text)], True
        case [str(text)]:
            return [TextInput(text)], True
        case [str(text), str(pair)]:
            return [TextInput(text, pair)], True
    batch = []
    for each in inputs:
        match each:
            case [text]:
                batch.append(TextInput(text))
            case [text, pair]:
                batch.append(TextInput(text, pair))
    if not inputs or len(batch) < len(inputs):
        raise InputError(
            "inputs must be a text, a pair [text, text], or a list of lists that have one text or two: "
            "[[text], [text, text], ...]"
        )
    return batch, False


async def _rerank(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    call = await body.decode(lambda data: decode_json(data, _rerank_decoder, limits))
    limits.check("max_client_batch_size", len(call.texts), "texts")
    if not call.texts:
        raise InputError("texts is empty; give at least one")
    # That server applies a sigmoid to every model's logits, whatever the model's files say.
    function = "none" if call.raw_scores else "sigmoid"
    parameters = call.parameters(top_k=1, threshold=None, function_to_apply=function)
    pairs = [TextInput(call.query, text) for text in call.texts]
    predictions = await _infer(request, runner, pairs, parameters, limits)

    def render_scores(answers: Sequence[Prediction]) -> Any:
        scores = [_columns(prediction)["score"][0] for prediction in answers]
        return (
            {"index": index, "score": scores[index], **({"text": call.texts[index]} if call.return_text else {})}
            for index in sort_by_score(scores)
        )

    return await render(render_scores, predictions, body.size // CHARACTERS_A_NUMBER)


async def _infer(
    request: Request,
    runner: Runner,
    inputs: Sequence[TextInput | TokenInput],
    parameters: dict[str, Any],
    limits: RequestLimits,
) -> Sequence[Prediction]:
    return await until_disconnect(request, runner.infer(inputs, resolve_options(runner, parameters, limits)))


_ANSWERS = {"/embed": _embed, "/predict": _predict, "/rerank": _rerank}


def _columns(prediction: Prediction) -> dict[str, list[Any]]:
    records = prediction.main
    assert isinstance(records, Records)
    return {name: column.tolist() for name, column in records.columns.items()}
