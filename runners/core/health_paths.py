"""What probes and scrapers ask. Workers answer, and the parent process answers health while no worker does."""

from __future__ import annotations

# BentoML names the first two, the Open Inference Protocol the last.
LIVE_PATHS = ("/livez", "/healthz", "/v2/health/live")
# As above; SageMaker calls /ping, and vLLM and Text Embeddings Inference have /health. They listen once they are ready.
READY_PATHS = ("/readyz", "/ping", "/health", "/v2/health/ready")
# The methods of gRPC that probes call.
HEALTH_METHODS = (
    "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
)  # fmt: skip
# What probes and scrapers ask every few seconds; / is the liveness of KServe's V1 protocol.
PROBED_PATHS = frozenset({*LIVE_PATHS, *READY_PATHS, *HEALTH_METHODS, "/", "/v2", "/metrics"})
