"""All routes of the Open Inference Protocol and its extensions."""

from __future__ import annotations

from starlette.routing import Route

from protocol.context import ServerContext
from protocol.open_inference import generate, repository, rest


def routes(context: ServerContext) -> list[Route]:
    """The routes below `/v2`, those of probes first: a flood of probes must cost little."""
    models, arguments = context.models, context.arguments
    return [
        *rest.health_routes(models),
        *generate.routes(models, arguments),
        *repository.routes(models, arguments, context.access),
        *rest.routes(models, arguments),
    ]
