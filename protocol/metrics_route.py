"""The metrics of all workers, for Prometheus."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.offload import offload
from runners.core.metric_families import BORROWED_NAMES, is_removed
from runners.core.model_metrics import write_metrics
from runners.core.models import Models


def metrics_route(models: Models) -> Route:
    """`/metrics`, in OpenMetrics' format for clients that accept it."""

    async def metrics(request: Request) -> Response:
        write_metrics(models)
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        if media_type.startswith("application/openmetrics-text"):
            # Else prometheus_client writes vllm: as vllm_, although any Prometheus reads names with colons.
            encode = partial(encode, escaping=ALLOWUTF8)  # type: ignore[call-arg]
        # Some ten ms for some hundred series and several workers.
        return Response(await offload(lambda: encode(_find_registry())), media_type=media_type)

    return Route("/metrics", metrics)


def _find_registry() -> CollectorRegistry:
    """The values of all workers, each of which writes its own to a folder."""
    collected = CollectorRegistry()
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _forget_dead_workers(Path(folder))
        MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
    else:
        for each in (REGISTRY, BORROWED_NAMES):
            collected.register(each)
    registry = CollectorRegistry()
    registry.register(_ShownSeries(collected))
    return registry


class _ShownSeries:
    """The series of a collector without the gauges that are removed."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            if metric.type == "gauge":
                metric.samples = [sample for sample in metric.samples if not is_removed(sample.value)]
            yield metric


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
