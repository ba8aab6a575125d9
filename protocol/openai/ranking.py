"""vLLM's reranking and scoring, for models on this server's own engine; vLLM answers for a model on vLLM.

Jina and Cohere also have `rerank`. A model that ranks reads query and text as one pair; one that embeds reads each by
itself, and the score is the cosine of their vectors. https://docs.vllm.ai/en/latest/models/pooling_models/scoring/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any

import numpy as np
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from protocol.http.body import Body, json_response
from protocol.http.rendering import CHARACTERS_A_NUMBER, render_off_loop
from protocol.model_selection import SelectModel
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import PoolingFields, count_input_usage
from protocol.rankings import read_scores, sort_by_score
from protocol.text_truncation import truncate_texts
from protocol.vectors import compare_vectors
from runners.core.errors import InputError
from runners.core.number_types import NonNegativeInt
from runners.core.predictions import LOGITS, RELEVANCE, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.task import Task

Texts = str | list[str]

# The names of the two sides of `score`, in the order in which vLLM looks for them.
SIDES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
_TEXT = ("text",)
_VALUES_A_RESULT = 4


class RankingFields(PoolingFields, kw_only=True):
    """The fields of both calls. With `use_activation` of false the score of a pair is its logit."""

    max_tokens_per_query: NonNegativeInt | None = None
    max_tokens_per_doc: NonNegativeInt | None = None


class RerankRequest(RankingFields, kw_only=True):
    """The body of `rerank`. The answer has the `top_n` best documents, or all of them if `top_n` is 0 or missing.

    Documents may be objects, as Cohere's clients send them. `raw_scores` is Infinity's field, and its answer differs.
    """

    query: str
    documents: str | list[str | dict[str, Any]]
    top_n: NonNegativeInt | None = None
    return_documents: bool | None = None
    rank_fields: Annotated[list[str], Meta(min_length=1)] | None = None
    raw_scores: bool | None = None

    @property
    def returns_documents(self) -> bool:
        """Whether the answer repeats the documents: Infinity's only if that is asked for."""
        return self.raw_scores is None if self.return_documents is None else self.return_documents

    def read_documents(self, limits: RequestLimits) -> list[str]:
        """The texts of the documents.

        Raises:
            LimitExceededError: there are more than the operator allows.
            InputError: there are none, or one has no text in a field that is ranked.
        """
        items = [self.documents] if isinstance(self.documents, str) else self.documents
        limits.check("max_client_batch_size", len(items), "documents", "documents")
        if not items:
            raise InputError("documents is empty; give at least one", "documents")
        fields = self.rank_fields or _TEXT
        return [_read_document(item, fields, position) for position, item in enumerate(items)]

    def show_document(self, index: int, text: str) -> Any:
        """A document as the answer repeats it."""
        if self.raw_scores is not None:
            return text
        item = self.documents if isinstance(self.documents, str) else self.documents[index]
        return {"text": item} if isinstance(item, str) else item


class ScoreRequest(RankingFields, kw_only=True):
    """The body of `score`: two fields with texts, under one of the pairs of names."""

    queries: Texts | UnsetType = UNSET
    documents: Texts | UnsetType = UNSET
    items: Texts | UnsetType = UNSET
    data_1: Texts | UnsetType = UNSET
    data_2: Texts | UnsetType = UNSET
    text_1: Texts | UnsetType = UNSET
    text_2: Texts | UnsetType = UNSET


_rerank_decoder = BodyDecoder(RerankRequest, ParameterSet.RERANK)
_score_decoder = BodyDecoder(ScoreRequest, ParameterSet.SCORE)


async def answer_rerank(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `rerank` with the documents in the order of their relevance to the query, best first.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot read a text.
    """
    call = await _rerank_decoder.read(body, limits)
    runner = select(call.model)
    documents = call.read_documents(limits)
    if call.raw_scores is not None:
        call.use_activation = not call.raw_scores
    scores, usage = await _score(runner, [call.query], documents, call, limits)
    described = call.describe_answer("rerank", runner)
    if call.raw_scores is None:
        head = {name: described[name] for name in ("id", "model")}
    else:
        head = {**described, "object": "rerank"}
    values = _VALUES_A_RESULT * len(documents) + body.size // CHARACTERS_A_NUMBER

    def render() -> Response:
        results = (
            {
                "index": index,
                **({"document": call.show_document(index, documents[index])} if call.returns_documents else {}),
                "relevance_score": scores[index],
            }
            for index in sort_by_score(scores)[: call.top_n or None]
        )
        return json_response({**head, "usage": usage, "results": results}, values)

    return await render_off_loop(render, values)


async def answer_score(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `score` with the scores of one text and each of N, or of N texts and one of N each, in order.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot read a text.
    """
    call = await _score_decoder.read(body, limits)
    runner = select(call.model)
    first, second = _read_sides(call, limits)
    scores, usage = await _score(runner, first, second, call, limits)
    data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
    return json_response({**call.describe_answer("score", runner), "data": data, "usage": usage})


def _read_document(item: str | Mapping[str, Any], fields: Sequence[str], position: int) -> str:
    """The text of a document: that of an object's fields, each on a line."""
    if isinstance(item, str):
        return item
    texts: list[str] = []
    for field in fields:
        text = item.get(field)
        if not isinstance(text, str):
            raise InputError(f"documents[{position}] has no text in the field {field[:100]!r}", "documents")
        texts.append(text)
    return "\n".join(texts)


def _read_sides(call: ScoreRequest, limits: RequestLimits) -> tuple[list[str], list[str]]:
    """The texts of both sides.

    Raises:
        InputError: a side is missing or empty, or their lengths do not fit.
    """
    for first_name, second_name in SIDES:
        first, second = getattr(call, first_name), getattr(call, second_name)
        if first is not UNSET and second is not UNSET:
            break
    else:
        names = ", ".join(f"{first} and {second}" for first, second in SIDES)
        raise InputError(f"the body has no two sides to score; give {names}")
    for name in dict.fromkeys(chain.from_iterable(SIDES)):
        if name not in (first_name, second_name) and getattr(call, name) is not UNSET:
            raise InputError(f"{name} is a third side beside {first_name} and {second_name}; give two", name)
    first, second = ([side] if isinstance(side, str) else side for side in (first, second))
    for name, side in ((first_name, first), (second_name, second)):
        if not side:
            raise InputError(f"{name} is empty; give at least one text", name)
        limits.check("max_client_batch_size", len(side), name, name)
    if len(first) not in (1, len(second)):
        raise InputError(
            f"{first_name} has {len(first)} texts and {second_name} has {len(second)}; "
            f"{first_name} must have one, or as many",
            first_name,
        )
    return first, second


async def _score(
    runner: Runner,
    first: Sequence[str],
    second: Sequence[str],
    call: RankingFields,
    limits: RequestLimits,
) -> tuple[list[float], dict[str, int]]:
    """The score of each second text with the first text at its position, or with the only first text; and the usage."""
    options = call.resolve(runner, limits)
    # Each by itself, before a pair is truncated to the model's length.
    if call.max_tokens_per_query:
        first = await truncate_texts(runner, first, call.max_tokens_per_query)
    if call.max_tokens_per_doc:
        second = await truncate_texts(runner, second, call.max_tokens_per_doc)
    if runner.task is Task.TEXT_EMBEDDING:
        # Whether vectors are normalized does not change their cosine.
        predictions = await runner.infer([TextInput(text) for text in (*first, *second)], options)
        scores = compare_vectors(predictions, len(first))
    else:
        output = LOGITS if call.use_activation is False else RELEVANCE
        firsts = first if len(first) == len(second) else [*first] * len(second)
        pairs = [TextInput(*pair) for pair in zip(firsts, second, strict=True)]
        predictions = await runner.infer(pairs, replace(options, outputs=frozenset({output})))
        scores = np.array(read_scores(predictions, output))
    return scores.tolist(), count_input_usage(predictions)
