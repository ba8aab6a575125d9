"""The paths that BentoML answers, and those that need no key."""

from __future__ import annotations

# Answered also on connections beyond the limit, so that a probe does not take a full server for a dead one.
HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/healthz"})
# BentoML's application answers these, behind its own middleware.
BENTOML_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/schema.json"})
# Swagger UI, which BentoML carries and /docs shows; a prefix.
BENTOML_ASSETS = "/static_content/"
# Probes and scrapers have no key, and the document tells clients that keys are needed.
OPEN_PATHS = HEALTH_PATHS | BENTOML_PATHS | {"/", "/v2", "/metrics", "/openapi.json", "/docs.json", "/docs"}
