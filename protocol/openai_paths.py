"""The paths of OpenAI's API and of vLLM's: what each calls, and which models answer it.

Routes, preflights, the OpenAPI document and the error texts of all protocols derive from this table. A new call needs a
row here for each of its paths. If this server answers it without vLLM, it also needs a row in
`protocol/openai/call_table.py`, and the schemas of its body and answer in `protocol/openai/openapi.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from runners.core.task import GENERATION, Task

if TYPE_CHECKING:
    from runners.core.models import Models
    from runners.core.runner import OpenAIApplication, Runner


class Place(Enum):
    """Where this server has a path of vLLM's."""

    # At the root and below the prefix (`/openai`).
    EVERYWHERE = "everywhere"
    # Below the prefix only, because operators use it.
    PREFIX = "prefix"


@dataclass(frozen=True, slots=True)
class OpenAIPath:
    """One path.

    Attributes:
        call: the name of what it calls; several paths may have the same.
        tasks: the tasks of the models that this server answers it for, without vLLM; none if only vLLM answers it.
        place: where the path is served.
        changes_models: whether it loads or unloads something, which only operators may do.
        vllm_path: vLLM's path of the call, if vLLM does not have this one.
    """

    call: str
    tasks: frozenset[Task] = frozenset()
    place: Place = Place.EVERYWHERE
    changes_models: bool = False
    vllm_path: str | None = None


_EMBEDDING = frozenset({Task.TEXT_EMBEDDING})
_RANKING = frozenset({Task.TEXT_EMBEDDING, Task.TEXT_RANKING})
_CLASSIFICATION = frozenset({Task.SEQUENCE_CLASSIFICATION, Task.TEXT_RANKING, Task.ZERO_SHOT_CLASSIFICATION})
_POOLING = _EMBEDDING | _CLASSIFICATION | {Task.TOKEN_CLASSIFICATION}
_ALL = frozenset(Task)

# By path. At the root, `protocol/shared_routes.py` shares some with other protocols.
OPENAI_PATHS: Mapping[str, OpenAIPath] = {
    "/v1/completions": OpenAIPath("completions", GENERATION),
    "/v1/chat/completions": OpenAIPath("chat/completions", GENERATION),
    "/v1/responses": OpenAIPath("responses", GENERATION),
    "/v1/messages": OpenAIPath("messages"),
    "/v1/embeddings": OpenAIPath("embeddings", _EMBEDDING),
    "/v1/rerank": OpenAIPath("rerank", _RANKING),
    "/v1/score": OpenAIPath("score", _RANKING),
    "/v1/classify": OpenAIPath("classify", _CLASSIFICATION, vllm_path="/classify"),
    "/v1/pooling": OpenAIPath("pooling", _POOLING, vllm_path="/pooling"),
    # Cohere's client has the version in its own paths.
    "/v2/rerank": OpenAIPath("rerank", _RANKING),
    # LiteLLM and Infinity's client have no version in theirs.
    "/embeddings": OpenAIPath("embeddings", _EMBEDDING, vllm_path="/v1/embeddings"),
    "/rerank": OpenAIPath("rerank", _RANKING),
    "/score": OpenAIPath("score", _RANKING),
    "/classify": OpenAIPath("classify", _CLASSIFICATION),
    "/pooling": OpenAIPath("pooling", _POOLING),
    "/tokenize": OpenAIPath("tokenize", _ALL),
    "/detokenize": OpenAIPath("detokenize", _ALL),
    # vLLM has them with VLLM_ALLOW_RUNTIME_LORA_UPDATING.
    "/v1/load_lora_adapter": OpenAIPath("load_lora_adapter", place=Place.PREFIX, changes_models=True),
    "/v1/unload_lora_adapter": OpenAIPath("unload_lora_adapter", place=Place.PREFIX, changes_models=True),
}
# huggingface_hub's client calls chats here, below the URL of a model: the path before the model's name, and after it.
MODEL_CHAT = ("/models/", "/v1/chat/completions")
# Infinity's path of the list of models, which is also at /v1/models.
MODEL_LIST = "/models"
AT_ROOT = [path for path, entry in OPENAI_PATHS.items() if entry.place is Place.EVERYWHERE]

# The names directly below /v1 that clients may use; an unknown path of another vLLM may be an operator's.
_CLIENT_RESOURCES = frozenset({"audio", "models", *(
    entry.call.partition("/")[0]
    for path, entry in OPENAI_PATHS.items() if path.startswith("/v1/") and not entry.changes_models
)})  # fmt: skip


def is_for_clients(path: str) -> bool:
    """Whether clients may use one of vLLM's paths; the others are for operators and not served."""
    if (entry := OPENAI_PATHS.get(path)) is not None:
        return not entry.changes_models
    return path.startswith("/v1/") and path.split("/")[2] in _CLIENT_RESOURCES


def changes_models(path: str) -> bool:
    """Whether one of vLLM's paths loads or unloads something."""
    entry = OPENAI_PATHS.get(path)
    return entry is not None and entry.changes_models


def find_vllm_path(path: str) -> str:
    """vLLM's path of the call at one of the table's paths; any other path as it is."""
    entry = OPENAI_PATHS.get(path)
    return path if entry is None else entry.vllm_path or path


def find_openai_application(runner: Runner) -> OpenAIApplication | None:
    """The application of the model's engine that answers OpenAI's API; None if this server answers it."""
    return None if runner.generator is None else runner.generator.openai_application


def list_openai_applications(models: Models) -> list[OpenAIApplication]:
    """The applications for OpenAI's API of the engines of all models that are ready."""
    runners = [model.runner for model in models.choose_versions() if model.ready]
    found = [find_openai_application(runner) for runner in runners if runner is not None]
    return [application for application in found if application is not None]


def list_client_paths(runner: Runner) -> list[str]:
    """The paths below /v1 of OpenAI's API and of vLLM's that a model answers for clients."""
    return [
        path
        for path, entry in OPENAI_PATHS.items()
        if path.startswith("/v1/") and not entry.changes_models and is_served(runner, path)
    ]


def is_served(runner: Runner, path: str) -> bool:
    """Whether a model answers one of the table's paths or vLLM's, such as `/v1/completions`."""
    if (application := find_openai_application(runner)) is not None:
        return application.serves(find_vllm_path(path))
    entry = OPENAI_PATHS.get(path)
    # The task of a generator is unknown until it is loaded.
    tasks = GENERATION if runner.generator is not None else {runner.task}
    return entry is not None and not entry.tasks.isdisjoint(tasks)
