"""`/similarity`: how similar sentences are to another one."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body
from protocol.http.rendering import render
from protocol.refused_parameters import RefusingDecoder, add_refused, check_refused
from protocol.tei.parameters import REFUSED, REFUSED_OF_SIMILARITY
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


_parameters: Any = add_refused(PromptedFields, REFUSED_OF_SIMILARITY)
_form: Any = msgspec.defstruct(
    TeiSimilarityRequest.__name__, [("parameters", _parameters | None, None)], bases=(TeiSimilarityRequest,)
)
_decoder: RefusingDecoder[TeiSimilarityRequest] = RefusingDecoder(_form, REFUSED["/similarity"])


async def answer_similarity(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the cosine of each sentence's vector and the source's."""
    call = await _decoder.read(body, limits)
    if call.parameters is not None:
        check_refused(call.parameters, REFUSED_OF_SIMILARITY, "parameters")
    sentences = call.inputs.sentences
    limits.check("max_client_batch_size", 1 + len(sentences), "sentences, with the source,")
    if not sentences:
        raise EmptyInputError("inputs.sentences is empty; give at least one")
    if not call.inputs.source_sentence or not all(sentences):
        raise EmptyInputError("a sentence is empty; give at least a character")
    options = resolve_options(runner, (call.parameters or PromptedFields()).to_options(), limits)
    texts = [TextInput(text) for text in (call.inputs.source_sentence, *sentences)]
    predictions = await infer(request, runner, texts, options)
    return await render(lambda answers: compare_vectors(answers, 1), predictions)
