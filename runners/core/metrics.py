"""The metrics of the runners, which /metrics serves."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

TRUNCATED_TEXTS = Counter(
    "runtime_truncated_texts",
    "Texts longer than the model's limit, of which only the beginning was read",
    ["model_name"],
)
NON_FINITE_TEXTS = Counter(
    "runtime_non_finite_texts",
    "Texts that were answered with an error because the model's scores of them were NaN or infinity",
    ["model_name"],
)
# "livesum" leaves out workers that have died.
WAITING_TEXTS = Gauge(
    "runtime_waiting_texts",
    "Texts in the queue before the model, of requests that somebody still waits for",
    ["model_name"],
    multiprocess_mode="livesum",
)
RUNNING_TEXTS = Gauge(
    "runtime_running_texts",
    "Texts that the model computes at this moment",
    ["model_name"],
    multiprocess_mode="livesum",
)


class Level:
    """The part of one queue in a gauge. The queue of a model that is loaded again adds a part of its own.

    Not thread-safe: the caller of `set` holds the lock of the queue.
    """

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge
        self._value = 0

    def set(self, value: int) -> None:
        """Make this part `value`."""
        if value != self._value:
            self._gauge.inc(value - self._value)
            self._value = value


class QueueMetrics:
    """How many texts of a model wait and run."""

    def __init__(self, model_name: str) -> None:
        # This creates the gauges with the value 0: an autoscaler needs a number from an idle server too.
        self.waiting = Level(WAITING_TEXTS.labels(model_name))
        self.running = Level(RUNNING_TEXTS.labels(model_name))
