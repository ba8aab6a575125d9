"""Counts each request whose record has ended."""

from __future__ import annotations

from runners.core.metric_families import CountedValue, counting
from runners.core.metrics import (
    CANCELLED_REQUESTS,
    COMPUTE_SECONDS,
    PREDICT_SECONDS,
    QUEUE_SECONDS,
    READ_SECONDS,
    REFUSALS,
    RENDER_SECONDS,
    REQUEST_SECONDS,
    REQUESTS,
    REQUESTS_IN_PROGRESS,
    TEXTS,
    TOKENS,
)
from runners.core.request_record import RequestRecord, in_progress


class _Route:
    """The series of a protocol's route and a model."""

    __slots__ = ("_labels", "_statuses", "seconds")

    def __init__(self, labels: tuple[str, str, str]) -> None:
        self._labels = labels
        self.seconds = REQUEST_SECONDS.series(*labels)
        self._statuses: dict[str, CountedValue] = {}

    def count(self, status: str) -> None:
        series = self._statuses.get(status)
        if series is None:
            series = self._statuses[status] = REQUESTS.series(*self._labels, status)
        series.value += 1


class _Model:
    """The series of a model."""

    __slots__ = ("compute", "predict", "queue", "read", "render", "texts", "tokens")

    def __init__(self, name: str) -> None:
        self.read, self.queue = READ_SECONDS.series(name), QUEUE_SECONDS.series(name)
        self.compute, self.render = COMPUTE_SECONDS.series(name), RENDER_SECONDS.series(name)
        self.predict = PREDICT_SECONDS.series(name)
        self.texts, self.tokens = TEXTS.series(name), TOKENS.series(name)

    def observe(self, record: RequestRecord) -> None:
        """Count the phases that the request has ended."""
        queued, computing, computed = record.queued, record.computing, record.computed
        if queued:
            self.read.observe(queued - record.started)
            if computing:
                self.queue.observe(computing - queued)
                if computed:
                    self.compute.observe(computed - computing)
            if computed:
                self.predict.observe(computed - queued)
        if record.cancelled or record.refusal is not None:
            return
        if record.rendering:
            self.render.observe(record.ended - record.rendering)
        self.texts.value += record.texts
        self.tokens.value += record.tokens + record.prompt_tokens + record.generation_tokens


# Their labels are routes, served models and statuses: a client cannot make more of them.
_routes: dict[tuple[str, str, str], _Route] = {}
_models: dict[str, _Model] = {}


def count_request(record: RequestRecord) -> None:
    """Count a request that has ended; an observer of records."""
    key = record.protocol, record.route, record.model_name
    with counting:
        route = _routes.get(key)
        if route is None:
            route = _routes[key] = _Route(key)
        route.count(record.status)
        route.seconds.observe(record.ended - record.started)
        if record.model_name:
            model = _models.get(record.model_name)
            if model is None:
                model = _models[record.model_name] = _Model(record.model_name)
            model.observe(record)
        if record.refusal is not None:
            REFUSALS.series(record.protocol, record.model_name, record.refusal).value += 1
        if record.cancelled:
            CANCELLED_REQUESTS.series(record.protocol, record.model_name).value += 1


def update_requests_in_progress() -> None:
    """Set the gauge of requests in progress; called before each flush."""
    for protocol, count in list(in_progress.items()):
        REQUESTS_IN_PROGRESS.set((protocol,), count)
