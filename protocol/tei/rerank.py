"""`/rerank`: texts by their relevance to a query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body
from protocol.http.rendering import CHARACTERS_A_NUMBER, render
from protocol.rankings import list_ranked, read_scores
from protocol.refused_parameters import RefusingDecoder
from protocol.tei.parameters import REFUSED
from protocol.tei.requests import TruncationFields, infer
from runners.core.errors import EmptyInputError
from runners.core.number_types import NonNegativeInt
from runners.core.predictions import Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner


class TeiRerankRequest(TruncationFields, kw_only=True):
    """The body of `/rerank`. `top_n`, which that server ignores and LiteLLM sends, is as in Cohere's; 0 is all."""

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    top_n: NonNegativeInt | None = None


_decoder = RefusingDecoder(TeiRerankRequest, REFUSED["/rerank"])


async def answer_rerank(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the position and the score of each text, best first."""
    call = await _decoder.read(body, limits)
    limits.check("max_client_batch_size", len(call.texts), "texts")
    if not call.texts:
        raise EmptyInputError("texts is empty; give at least one")
    if not call.query and not all(call.texts):
        raise EmptyInputError("query and one of the texts are empty; give at least a character")
    # That server applies a sigmoid to every model's logits, whatever the model's files say.
    parameters = call.to_options(top_k=1, function_to_apply="none" if call.raw_scores else "sigmoid")
    options = resolve_options(runner, {**parameters, "threshold": None}, limits)
    pairs = [TextInput(call.query, text) for text in call.texts]
    predictions = await infer(request, runner, pairs, options)

    def render_scores(answers: Sequence[Prediction]) -> Any:
        scores = read_scores(answers)
        return list_ranked(scores, call.texts if call.return_text else None, call.top_n or None)

    return await render(render_scores, predictions, body.size // CHARACTERS_A_NUMBER)
