"""The calls of OpenAI's API and of vLLM's that this server answers itself, without vLLM.

A new call needs a row here, a row in `protocol/openai_paths.py` for each of its paths, and the schemas of its body and
answer in `protocol/openai/openapi.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from protocol.http.body import Body
from protocol.model_selection import SelectModel
from protocol.openai.chats import answer_chat
from protocol.openai.classify import answer_classify
from protocol.openai.completions import answer_completion
from protocol.openai.embeddings import answer_embeddings
from protocol.openai.pooling import answer_pooling
from protocol.openai.ranking import answer_rerank, answer_score
from protocol.openai.responses import answer_response
from protocol.openai.tokenize import answer_detokenize, answer_tokenize
from runners.core.request_limits import RequestLimits

# Decodes the body, and selects the model that the body names.
AnswerCall = Callable[[SelectModel, Body, RequestLimits], Coroutine[Any, Any, Response]]


@dataclass(frozen=True, slots=True)
class OpenAICall:
    """A call.

    Attributes:
        answer: answers a request.
        request: the name of the request body's schema.
        response: the name of the answer's schema.
        summary: the call's summary in the OpenAPI document.
    """

    answer: AnswerCall
    request: str
    response: str
    summary: str


# By the call's name in `protocol/openai_paths.py`.
CALLS: Mapping[str, OpenAICall] = {
    "completions": OpenAICall(answer_completion, "CompletionRequest", "CompletionResponse", "Continue prompts"),
    "chat/completions": OpenAICall(answer_chat, "ChatRequest", "ChatResponse", "Continue a chat"),
    "responses": OpenAICall(answer_response, "ResponsesRequest", "ResponsesResponse", "Answer a text or a chat"),
    "embeddings": OpenAICall(answer_embeddings, "EmbeddingRequest", "EmbeddingResponse", "Embed texts"),
    "rerank": OpenAICall(answer_rerank, "RerankRequest", "RerankResponse", "Rank texts by a query"),
    "score": OpenAICall(answer_score, "ScoreRequest", "ScoreResponse", "Score pairs of texts"),
    "classify": OpenAICall(answer_classify, "ClassifyRequest", "ClassifyResponse", "Classify texts"),
    "pooling": OpenAICall(
        answer_pooling, "PoolingRequest", "PoolingResponse", "Embed or classify texts or their tokens"
    ),
    "tokenize": OpenAICall(answer_tokenize, "TokenizeRequest", "TokenizeResponse", "Tokenize a text or a chat"),
    "detokenize": OpenAICall(answer_detokenize, "DetokenizeRequest", "DetokenizeResponse", "Detokenize tokens"),
}
