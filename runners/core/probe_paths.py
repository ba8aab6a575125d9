"""What probes and scrapers ask. Workers answer, and the parent process answers health while no worker does."""

from __future__ import annotations

import os

from runners.core.cloud_routes import read_health_route
from runners.core.errors import ArgumentsError


def _find_cloud_paths() -> tuple[str, ...]:
    """The path that a cloud probes; the start refuses a wrong one."""
    try:
        path = read_health_route(os.environ)
    except ArgumentsError:
        return ()
    return () if path is None else (path,)


# The same in all processes of a server.
CLOUD_READY_PATHS = _find_cloud_paths()
# A GET is KServe V1's probe of liveness; a POST calls a model, by the protocols of Hugging Face and Elasticsearch.
ROOT_PATH = "/"
# BentoML names the first two, the Open Inference Protocol the next, Weaviate the last.
LIVE_PATHS = ("/livez", "/healthz", "/v2/health/live", "/.well-known/live")
# As above; SageMaker calls /ping, and vLLM and Text Embeddings Inference have /health. They listen once they are ready.
READY_PATHS = ("/readyz", "/ping", "/health", "/v2/health/ready", "/.well-known/ready", *CLOUD_READY_PATHS)
# vLLM's paths of its version and of the number of requests under way.
VERSION_PATH, LOAD_PATH = "/version", "/load"
# The methods of gRPC that probes call.
HEALTH_METHODS = (
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)  # fmt: skip
# The methods of HTTP that they use.
PROBE_METHODS = frozenset({"GET", "HEAD"})
# What probes and scrapers ask every few seconds.
PROBED_PATHS = frozenset(
    {ROOT_PATH, *LIVE_PATHS, *READY_PATHS, *HEALTH_METHODS, VERSION_PATH, LOAD_PATH, "/v2", "/metrics"}
)


def is_probe(method: str, path: str) -> bool:
    """Whether a request is one of those that probes and scrapers make.

    Args:
        path: the path, or the method of a gRPC call.
    """
    return path in PROBED_PATHS and (method in PROBE_METHODS or path in HEALTH_METHODS)
