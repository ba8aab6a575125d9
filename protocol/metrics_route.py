"""The metrics of all workers, for Prometheus."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def metrics_route() -> Route:
    """`/metrics`."""
    return Route("/metrics", _metrics)


async def _metrics(_: Request) -> Response:
    """The metrics of all workers; BentoML makes the folder to which each writes its own."""
    registry = REGISTRY
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _forget_dead_workers(folder: Path) -> None:
    """Remove the gauges of workers that were killed; their counters stay."""
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):
                # Another worker may remove it at the same time.
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
