"""The paths of OpenAI's API and of vLLM's: which models answer each, and how this server answers it itself.

Routes, preflights, error texts and the OpenAPI document derive from this one table.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from starlette.responses import Response

from protocol.http.body import Body
from protocol.openai.chats import answer_chat
from protocol.openai.completions import answer_completion
from protocol.openai.embeddings import answer_embeddings
from protocol.openai.ranking import answer_rerank, answer_score
from protocol.openai.responses import answer_response
from protocol.openai.tokenize import answer_detokenize, answer_tokenize
from runners.core.models import Models
from runners.core.request_limits import RequestLimits
from runners.core.runner import OpenAIApplication, Runner
from runners.core.task import GENERATION, Task

# The runner has one of the endpoint's tasks.
Answer = Callable[[Models, Any, Body, RequestLimits], Coroutine[Any, Any, Response]]


class Place(Enum):
    """Where this server has a path of vLLM's."""

    # At the root and below the prefix (`/openai`).
    EVERYWHERE = "everywhere"
    # Below the prefix only, because another protocol may use the path at the root.
    PREFIX = "prefix"


@dataclass(frozen=True, slots=True)
class OpenAIEndpoint:
    """One path.

    Attributes:
        name: the call's name, which all its paths share.
        answer: how this server answers it without vLLM; None if only vLLM answers it.
        tasks: the tasks of the models that this server answers it for, without vLLM.
        request: the name of the request body's schema.
        response: the name of the answer's schema.
        summary: the call's summary in the OpenAPI document.
        place: where the path is served.
        changes_models: whether it loads or unloads something, which only operators may do.
    """

    name: str
    answer: Answer | None = None
    tasks: frozenset[Task] = frozenset()
    request: str = ""
    response: str = ""
    summary: str = ""
    place: Place = Place.EVERYWHERE
    changes_models: bool = False


_EMBEDDING = frozenset({Task.TEXT_EMBEDDING})
_RANKING = frozenset({Task.TEXT_EMBEDDING, Task.TEXT_RANKING})


def _rerank(place: Place = Place.EVERYWHERE) -> OpenAIEndpoint:
    summary = "Rank texts by a query"
    return OpenAIEndpoint("rerank", answer_rerank, _RANKING, "RerankRequest", "RerankResponse", summary, place)


def _score(place: Place = Place.EVERYWHERE) -> OpenAIEndpoint:
    summary = "Score pairs of texts"
    return OpenAIEndpoint("score", answer_score, _RANKING, "ScoreRequest", "ScoreResponse", summary, place)


# By vLLM's path.
ENDPOINTS: Mapping[str, OpenAIEndpoint] = {
    "/v1/completions": OpenAIEndpoint(
        "completions", answer_completion, GENERATION, "CompletionRequest", "CompletionResponse", "Continue prompts"
    ),
    "/v1/chat/completions": OpenAIEndpoint(
        "chat/completions", answer_chat, GENERATION, "ChatRequest", "ChatResponse", "Continue a chat"
    ),
    "/v1/responses": OpenAIEndpoint(
        "responses", answer_response, GENERATION, "ResponsesRequest", "ResponsesResponse",
        "Answer a text or a chat",
    ),
    "/v1/messages": OpenAIEndpoint("messages"),
    "/v1/embeddings": OpenAIEndpoint(
        "embeddings", answer_embeddings, _EMBEDDING, "EmbeddingRequest", "EmbeddingResponse", "Embed texts"
    ),
    "/v1/rerank": _rerank(),
    "/v1/score": _score(),
    "/v1/classify": OpenAIEndpoint("classify"),
    "/v1/pooling": OpenAIEndpoint("pooling"),
    # Cohere's client has the version in its own paths.
    "/v2/rerank": _rerank(),
    "/rerank": _rerank(Place.PREFIX),
    "/score": _score(Place.PREFIX),
    "/classify": OpenAIEndpoint("classify", place=Place.PREFIX),
    "/pooling": OpenAIEndpoint("pooling", place=Place.PREFIX),
    "/tokenize": OpenAIEndpoint(
        "tokenize", answer_tokenize, GENERATION, "TokenizeRequest", "TokenizeResponse", "Tokenize a text or a chat"
    ),
    "/detokenize": OpenAIEndpoint(
        "detokenize", answer_detokenize, GENERATION, "DetokenizeRequest", "DetokenizeResponse", "Detokenize tokens"
    ),
    # vLLM has them with VLLM_ALLOW_RUNTIME_LORA_UPDATING.
    "/v1/load_lora_adapter": OpenAIEndpoint("load_lora_adapter", place=Place.PREFIX, changes_models=True),
    "/v1/unload_lora_adapter": OpenAIEndpoint("unload_lora_adapter", place=Place.PREFIX, changes_models=True),
}  # fmt: skip
AT_ROOT = [path for path, endpoint in ENDPOINTS.items() if endpoint.place is Place.EVERYWHERE]

# The names directly below /v1 that clients may use; an unknown path of another vLLM may be an operator's.
_CLIENT_RESOURCES = frozenset({"audio", "models", *(name.partition("/")[0] for name in (
    endpoint.name for path, endpoint in ENDPOINTS.items() if path.startswith("/v1/") and not endpoint.changes_models
))})  # fmt: skip


def is_for_clients(path: str) -> bool:
    """Whether clients may use one of vLLM's paths; the others are for operators and not served."""
    if (endpoint := ENDPOINTS.get(path)) is not None:
        return not endpoint.changes_models
    return path.startswith("/v1/") and path.split("/")[2] in _CLIENT_RESOURCES


def changes_models(path: str) -> bool:
    """Whether one of vLLM's paths loads or unloads something."""
    endpoint = ENDPOINTS.get(path)
    return endpoint is not None and endpoint.changes_models


def find_openai_application(runner: Runner) -> OpenAIApplication | None:
    """The application of the model's engine that answers OpenAI's API; None if this server answers it."""
    return None if runner.generator is None else runner.generator.openai_application


def is_served(runner: Runner, path: str) -> bool:
    """Whether a model answers one of vLLM's paths, such as `/v1/completions`."""
    if (application := find_openai_application(runner)) is not None:
        return application.serves(path)
    endpoint = ENDPOINTS.get(path)
    # The task of a generator is unknown until it is loaded.
    tasks = GENERATION if runner.generator is not None else {runner.task}
    return endpoint is not None and not endpoint.tasks.isdisjoint(tasks)
