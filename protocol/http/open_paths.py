"""The paths that BentoML answers, and those that need no key."""

from __future__ import annotations

from runners.core.probe_paths import LIVE_PATHS, LOAD_PATH, READY_PATHS, VERSION_PATH

# Answered also on connections beyond the limit, so that a probe does not take a full server for a dead one.
HEALTH_PATHS = frozenset({*LIVE_PATHS, *READY_PATHS})
# BentoML's application answers this, behind its own middleware.
BENTOML_PATHS = frozenset({"/schema.json"})
# Swagger UI, which BentoML carries and /docs shows; a prefix.
BENTOML_ASSETS = "/static_content/"
PLAYGROUND_PATH = "/playground"
# Probes and scrapers have no key. The document tells clients that keys are needed, the playground asks for one.
OPEN_PATHS = (
    HEALTH_PATHS
    | BENTOML_PATHS
    | {"/", "/v2", VERSION_PATH, LOAD_PATH, "/metrics", "/openapi.json", "/docs.json", "/docs", PLAYGROUND_PATH}
)


def is_open(method: str, path: str) -> bool:
    """Whether a request needs no key. POST does, since it calls a model at those of the paths where it is served."""
    return path in OPEN_PATHS and method != "POST"
