"""The paths of health probes, which workers answer, and the parent process while no worker does."""

from __future__ import annotations

# KServe V1 has a path of liveness with an answer of its own.
KSERVE_LIVE_PATH = "/"
# BentoML names the first two, the Open Inference Protocol the last.
LIVE_PATHS = ("/livez", "/healthz", "/v2/health/live")
# As above; SageMaker calls /ping, and vLLM and Text Embeddings Inference have /health. They listen once they are ready.
READY_PATHS = ("/readyz", "/ping", "/health", "/v2/health/ready")
