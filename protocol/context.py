"""The server, for the protocols that make routes and describe themselves in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.http.middleware.authentication import Access
from runners.core.arguments import Arguments
from runners.core.models import Models


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The server's models and its operator's settings.

    Attributes:
        arguments: the operator's arguments, the limits among them.
        access: who may make which requests.
        openai_prefix: the prefix of OpenAI's paths, which are also served without it; empty, or such as `/openai`.
    """

    models: Models
    arguments: Arguments
    access: Access
    openai_prefix: str


def make_context(models: Models, arguments: Arguments, openai_prefix: str = "/openai") -> ServerContext:
    """The context, with the prefix in its usual form."""
    return ServerContext(models, arguments, Access(arguments), normalize_prefix(openai_prefix))


def normalize_prefix(prefix: str) -> str:
    """The prefix with a slash before it and none after it; empty for no prefix."""
    return f"/{prefix.strip('/')}".rstrip("/")
