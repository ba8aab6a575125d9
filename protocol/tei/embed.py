"""`/embed`, `/embed_all` and `/embed_sparse`: a vector for each text, for each of its tokens, or a sparse one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body
from protocol.http.rendering import render
from protocol.records import list_records
from protocol.refused_parameters import RefusingDecoder
from protocol.tei.parameters import REFUSED
from protocol.tei.requests import PromptedFields, infer
from protocol.text_inputs import Inputs, read_text_inputs
from protocol.vectors import stack_vectors
from runners.core.number_types import PositiveInt
from runners.core.predictions import TOKEN_EMBEDDINGS, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner


class TeiEmbedRequest(PromptedFields, kw_only=True):
    """The body of `/embed`. `inputs` is a text, texts, or token ids; `normalize` scales vectors to length 1."""

    inputs: Inputs
    normalize: bool = True
    dimensions: PositiveInt | None = None

    def to_options(self, **more: Any) -> dict[str, Any]:
        return super().to_options(normalize=self.normalize, dimensions=self.dimensions, **more)


class TeiEmbedTokensRequest(PromptedFields, kw_only=True):
    """The body of `/embed_all` and `/embed_sparse`. `inputs` is a text, texts, or token ids."""

    inputs: Inputs


_embed_decoder = RefusingDecoder(TeiEmbedRequest, REFUSED["/embed"])
_all_decoder = RefusingDecoder(TeiEmbedTokensRequest, REFUSED["/embed_all"])
_sparse_decoder = RefusingDecoder(TeiEmbedTokensRequest, REFUSED["/embed_sparse"])


async def answer_embed(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the vector of each text, also if there is one text alone."""
    predictions = await _infer(request, runner, body, limits, _embed_decoder)
    return await render(stack_vectors, predictions)


async def answer_embed_all(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the vectors of each text's tokens as the model's last layer has them, special tokens included."""
    predictions = await _infer(request, runner, body, limits, _all_decoder, frozenset({TOKEN_EMBEDDINGS}))
    return await render(lambda answers: [answer.arrays[TOKEN_EMBEDDINGS] for answer in answers], predictions)


async def answer_embed_sparse(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the entries of the vocabulary that each text weighs."""
    predictions = await _infer(request, runner, body, limits, _sparse_decoder)
    return await render(lambda answers: [list_records(answer.records) for answer in answers], predictions)


async def _infer(
    request: Request,
    runner: Runner,
    body: Body,
    limits: RequestLimits,
    decoder: RefusingDecoder[Any],
    outputs: frozenset[str] = frozenset(),
) -> Sequence[Prediction]:
    def read(data: bytes) -> tuple[PromptedFields, Sequence[TextInput | TokenInput]]:
        call = decoder.decode(data, limits)
        return call, read_text_inputs(call.inputs, "inputs", limits)

    call, inputs = await body.decode(read)
    options = resolve_options(runner, call.to_options(), limits)
    return await infer(request, runner, inputs, replace(options, outputs=options.outputs | outputs))
