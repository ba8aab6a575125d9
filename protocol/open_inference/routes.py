"""All routes of the Open Inference Protocol and its extensions."""

from __future__ import annotations

from starlette.routing import Route

from protocol.context import ServerContext
from protocol.open_inference import generate, repository, rest


def routes(context: ServerContext) -> list[Route]:
    """The routes below `/v2`."""
    models, arguments = context.models, context.arguments
    return [
        *generate.routes(models, arguments),
        *repository.routes(models, arguments, context.access),
        *rest.routes(models, arguments),
    ]
