"""All protocols in one ASGI application."""

from __future__ import annotations

from starlette.routing import Route
from starlette.types import ASGIApp

from protocol.bentoml_api import openapi as bentoml_document
from protocol.bentoml_api import routes as bentoml_api
from protocol.clouds import openapi as clouds_document
from protocol.clouds import sagemaker, vertex
from protocol.cohere import openapi as cohere_document
from protocol.cohere import routes as cohere
from protocol.context import ServerContext, make_context
from protocol.elastic import openapi as elastic_document
from protocol.elastic import routes as elastic
from protocol.health_routes import health_routes
from protocol.http.body_budget import BodyBudget
from protocol.http.endpoints import Endpoints
from protocol.http.middleware.allowed_methods import ReportAllowedMethods
from protocol.http.middleware.cors import Cors
from protocol.http.recording import SERVER
from protocol.http.request_pass import RequestPass
from protocol.http.routing import find_endpoint
from protocol.huggingface import openapi as huggingface_document
from protocol.huggingface import routes as huggingface
from protocol.kserve_v1 import openapi as kserve_v1_document
from protocol.kserve_v1 import routes as kserve_v1
from protocol.metrics_route import metrics_route
from protocol.open_inference import openapi as open_inference_document
from protocol.open_inference import routes as open_inference
from protocol.openai import openapi as openai_document
from protocol.openai import routes as openai
from protocol.openapi import document as openapi
from protocol.playground import routes as playground
from protocol.shared_routes import share_routes
from protocol.tei import openapi as tei_document
from protocol.tei import routes as tei
from protocol.weaviate import openapi as weaviate_document
from protocol.weaviate import routes as weaviate
from runners.core.arguments import Arguments
from runners.core.models import Models
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_metrics import count_request
from runners.core.request_record import add_observer

# One line for each protocol: its name in metrics and logs, its routes, and its part of the OpenAPI document. Routes are
# tried in this order.
PROTOCOLS = (
    ("open_inference", open_inference.routes, open_inference_document.describe),
    ("kserve_v1", kserve_v1.routes, kserve_v1_document.describe),
    ("openai", openai.routes, openai_document.describe),
    ("tei", tei.routes, tei_document.describe),
    ("huggingface", huggingface.routes, huggingface_document.describe),
    ("bentoml", bentoml_api.routes, bentoml_document.describe),
    ("cohere", cohere.routes, cohere_document.describe),
    ("elastic", elastic.routes, elastic_document.describe),
    ("weaviate", weaviate.routes, weaviate_document.describe),
    # Describes the operations above once more.
    ("sagemaker", sagemaker.routes, clouds_document.describe),
)


def create_application(
    models: Models,
    arguments: Arguments,
    openai_prefix: str = "/openai",
    cors: Cors | None = None,
    predict_route: str | None = None,
) -> ASGIApp:
    """The application that serves `models`.

    Args:
        openai_prefix: the prefix of OpenAI's paths, which are also served without it.
        cors: what pages of other origins may do; None if they may do nothing.
        predict_route: the path at which Vertex AI calls models; None elsewhere.
    """
    add_observer(count_request)
    context = make_context(models, arguments, openai_prefix, predict_route)
    endpoints = Endpoints(create_routes(context))
    options, budget = ReportAllowedMethods(endpoints, models), BodyBudget(arguments.max_buffered_bytes)
    return RequestPass(endpoints, options, context.access, budget, cors)


def create_routes(context: ServerContext) -> dict[str, list[Route]]:
    """The routes by protocol, in the order in which they are tried."""
    describes = [describe for _, _, describe in PROTOCOLS]
    by_protocol = {name: routes(context) for name, routes, _ in PROTOCOLS}
    # First, because a flood of probes must cost little.
    server_routes = [*health_routes(context.models), *openapi.routes(context, describes), metrics_route(context.models)]
    if context.arguments.enable_playground:
        alive = find_endpoint(by_protocol["kserve_v1"], ROOT_PATH)
        server_routes += playground.routes(context.models, alive, "kserve_v1")
    by_protocol = {SERVER: [*server_routes, *share_routes(by_protocol, context.arguments)], **by_protocol}
    others = [route for routes in by_protocol.values() for route in routes]
    return {"vertex": vertex.routes(context, others), **by_protocol}
