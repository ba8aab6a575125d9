"""`/similarity`: how similar sentences are to another one."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body, decode_json
from protocol.http.rendering import render
from protocol.tei.requests import PromptedFields, infer
from protocol.vectors import compare_vectors
from runners.core.errors import EmptyInputError
from runners.core.predictions import TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner


class TeiSimilarityInput(msgspec.Struct):
    """A sentence, and those that are compared with it."""

    source_sentence: str
    sentences: list[str]


class TeiSimilarityRequest(msgspec.Struct, kw_only=True):
    """The body of `/similarity`."""

    inputs: TeiSimilarityInput
    parameters: PromptedFields | None = None


_decoder = msgspec.json.Decoder(TeiSimilarityRequest)


async def answer_similarity(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the cosine of each sentence's vector and the source's."""
    call = await body.decode(lambda data: decode_json(data, _decoder, limits))
    sentences = call.inputs.sentences
    limits.check("max_client_batch_size", 1 + len(sentences), "sentences, with the source,")
    if not sentences:
        raise EmptyInputError("inputs.sentences is empty; give at least one")
    if not call.inputs.source_sentence or not all(sentences):
        raise EmptyInputError("a sentence is empty; give at least a character")
    options = resolve_options(runner, (call.parameters or PromptedFields()).parameters(), limits)
    texts = [TextInput(text) for text in (call.inputs.source_sentence, *sentences)]
    predictions = await infer(request, runner, texts, options)
    return await render(lambda answers: compare_vectors(answers, 1), predictions)
