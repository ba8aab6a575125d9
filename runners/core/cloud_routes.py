"""The paths that Vertex AI names to its containers: where it calls models, and where it asks whether they are ready.

https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from runners.core.errors import ArgumentsError

# What queries, fragments, escapes and templates of paths need has no place in it.
_ROUTE = re.compile(r"/[^\s{}?#%]*")


def read_predict_route(environment: Mapping[str, str]) -> str | None:
    """The path at which Vertex AI calls models; None elsewhere.

    Raises:
        ArgumentsError: it is no path.
    """
    return _read_route(environment, "AIP_PREDICT_ROUTE")


def read_health_route(environment: Mapping[str, str]) -> str | None:
    """The path at which Vertex AI asks whether the server is ready; None elsewhere.

    Raises:
        ArgumentsError: it is no path.
    """
    return _read_route(environment, "AIP_HEALTH_ROUTE")


def _read_route(environment: Mapping[str, str], name: str) -> str | None:
    if not (route := environment.get(name)):
        return None
    if _ROUTE.fullmatch(route) is None:
        raise ArgumentsError(f"{name} is {route!r}: it must be a path, such as /predict")
    return route.rstrip("/") or "/"
