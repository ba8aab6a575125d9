"""The metrics of all workers, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.offload import offload
from runners.core.metric_families import BORROWED_NAMES, is_removed
from runners.core.metrics_lock import lock_files
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
        return Response(await offload(lambda: _render(encode)), media_type=media_type)

    return Route("/metrics", metrics)


def _render(encode: Callable[[Collector], bytes]) -> bytes:
    """The values of all workers, each of which writes its own to a folder."""
    collected = CollectorRegistry()
    shown = CollectorRegistry()
    shown.register(_ShownSeries(collected))
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        MultiProcessCollector(collected)  # type: ignore[no-untyped-call]
        with lock_files(Path(folder), moves=False):
            return encode(shown)
    for each in (REGISTRY, BORROWED_NAMES):
        collected.register(each)
    return encode(shown)


class _ShownSeries:
    """The series of a collector without the gauges that are removed."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            if metric.type == "gauge":
                metric.samples = [sample for sample in metric.samples if not is_removed(sample.value)]
            yield metric
