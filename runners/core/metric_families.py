"""Counters, gauges and histograms that cost little: they are counted in plain Python, and written once a second.

Writing to a metric of prometheus_client takes some microseconds, because all workers share files of values. `flush`
writes what has been counted since the last time; a worker that is killed loses the counts of its last second.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from math import inf, isinf
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString
from prometheus_client.values import ValueClass

GaugeMode = Literal["livesum", "livemax", "livemin"]
Labels = tuple[str, ...]

# 1 ms to 60 s.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

# Metrics under names of other libraries, which register theirs in the usual registry when they are imported.
BORROWED_NAMES = CollectorRegistry()
# Held while anything is counted, by any thread, and while counts are taken for the files. Whoever counts several things
# takes it once.
counting = threading.Lock()
# One flush at a time.
_flushing = threading.Lock()
# Files cannot lose a series, so a removed one gets the value that changes nothing in the values of other workers.
_REMOVED: dict[GaugeMode, float] = {"livesum": 0.0, "livemax": -inf, "livemin": inf}
_families: list[CounterFamily | GaugeFamily | HistogramFamily] = []


def flush() -> None:
    """Write what has been counted to the metrics of prometheus_client; from any thread.

    Raises:
        Exception: families could not be written; the first one's error. All others are written.
    """
    errors: list[Exception] = []
    with _flushing:
        for family in _families:
            try:
                family.flush()
            except Exception as error:
                errors.append(error)
    if errors:
        raise errors[0]


def is_removed(value: float) -> bool:
    """Whether no worker has the series of a gauge that has this value."""
    return isinf(value)


def list_families() -> Sequence[CounterFamily | GaugeFamily | HistogramFamily]:
    """All metrics of this server, in the order in which they are defined."""
    return _families


class CountedValue:
    """A series of a counter or gauge. Its `value` is changed while `counting` is held.

    Attributes:
        value: of a counter, the counts since the last flush; of a gauge, the value.
    """

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0


class _ValueFamily:
    """What counters and gauges with labels share: a value for each combination of label values."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str]) -> None:
        self.name = name
        self.meaning = meaning
        self.labels = tuple(labels)
        self._series: dict[Labels, CountedValue] = {}

    def series(self, *labels: str) -> CountedValue:
        """The series of these label values, which is shown from now on; while `counting` is held."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = CountedValue()
        return found


class CounterFamily(_ValueFamily):
    """A counter with labels."""

    kind = "counter"

    def __init__(
        self, name: str, meaning: str, labels: Sequence[str] = (), registry: CollectorRegistry = REGISTRY
    ) -> None:
        """
        Args:
            name: without the `_total` that the exposition adds.
        """
        super().__init__(f"{name}_total", meaning, labels)
        self._counter = Counter(name, meaning, labels, registry=registry)
        _families.append(self)

    def add(self, labels: Labels, amount: float = 1) -> None:
        """Count, where `counting` is not held."""
        with counting:
            self.series(*labels).value += amount

    def flush(self) -> None:
        with counting:
            added = [(labels, series.value) for labels, series in self._series.items()]
            for series in self._series.values():
                series.value = 0
        for labels, value in added:
            child = self._counter.labels(*labels) if labels else self._counter
            if value:
                child.inc(value)


class GaugeFamily(_ValueFamily):
    """A gauge with labels, of which all workers have a part."""

    kind = "gauge"

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str] = (),
        mode: GaugeMode = "livesum",
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """
        Args:
            mode: how the values of the workers that live make one.
        """
        super().__init__(name, meaning, labels)
        self._gauge = Gauge(name, meaning, labels, registry=registry, multiprocess_mode=mode)
        self._removed = _REMOVED[mode]
        self._written: dict[Labels, float] = {}
        _families.append(self)

    def set(self, labels: Labels, value: float) -> None:
        """Set the value, where `counting` is not held."""
        with counting:
            self.series(*labels).value = value

    def remove(self, labels: Labels) -> None:
        """Show a series no more, unless another worker does; one of a sum is shown as 0."""
        with counting:
            self._series.pop(labels, None)

    def list_labels(self) -> list[Labels]:
        """The label values of all series."""
        with counting:
            return list(self._series)

    def flush(self) -> None:
        with counting:
            values = {labels: series.value for labels, series in self._series.items()}
        removed = dict.fromkeys(self._written, self._removed)
        for labels, value in (removed | values).items():
            if self._written.get(labels) != value:
                (self._gauge.labels(*labels) if labels else self._gauge).set(value)
                self._written[labels] = value


class CountedObservations:
    """A series of one or more histograms, which is the same in all of them."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value, while `counting` is held."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def take(self) -> tuple[list[int], float]:
        """What has been counted since the last time; while `counting` is held."""
        taken = self.counts, self.total
        self.counts, self.total = [0] * len(taken[0]), 0.0
        return taken


class HistogramFamily:
    """A histogram with labels; prometheus_client's own takes one observation at a time."""

    kind = "histogram"

    def __init__(
        self,
        name: str,
        meaning: str,
        labels: Sequence[str] = (),
        bounds: Sequence[float] = SECONDS,
        registry: CollectorRegistry = REGISTRY,
        other_names: Sequence[HistogramFamily] = (),
    ) -> None:
        """
        Args:
            bounds: the upper bounds of the buckets, ascending, without infinity.
            other_names: histograms that show these observations too, under their names; they get none of their own.
        """
        self.name = name
        self.meaning = meaning
        self.labels = tuple(labels)
        self.bounds = tuple(bounds)
        self._series: dict[Labels, CountedObservations] = {}
        self._values: dict[Labels, _BucketValues] = {}
        self._shown_by = (self, *other_names)
        registry.register(self)
        _families.append(self)

    def series(self, *labels: str) -> CountedObservations:
        """As `_ValueFamily.series`."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = CountedObservations(self.bounds)
        return found

    def flush(self) -> None:
        with counting:
            taken = [(labels, *series.take()) for labels, series in self._series.items()]
        for labels, counts, total in taken:
            for family in self._shown_by:
                family._write(labels, counts, total)

    def _write(self, labels: Labels, counts: Sequence[int], total: float) -> None:
        values = self._values.get(labels)
        if values is None:
            values = self._values[labels] = _BucketValues(self, labels)
        values.add(counts, total)

    def describe(self) -> Iterable[Metric]:
        """The metric without values, as a collector of prometheus_client."""
        return [HistogramMetricFamily(self.name, self.meaning, labels=self.labels)]

    def collect(self) -> Iterator[Metric]:
        """The values of this process, as a collector of prometheus_client."""
        family = HistogramMetricFamily(self.name, self.meaning, labels=self.labels)
        for labels, values in list(self._values.items()):
            family.add_metric(labels, values.list_cumulative(), values.total)
        yield family


class _BucketValues:
    """The values of one series: in a file that all workers read, as prometheus_client's own histograms have them."""

    def __init__(self, family: HistogramFamily, labels: Labels) -> None:
        bounds = (*family.bounds, float("inf"))
        self._bounds: list[str] = [floatToGoString(bound) for bound in bounds]  # type: ignore[no-untyped-call]
        names = family.labels
        bucket, head = f"{family.name}_bucket", (family.kind, family.name)
        self._counts = [
            ValueClass(*head, bucket, (*names, "le"), (*labels, bound), family.meaning) for bound in self._bounds
        ]
        self._total = ValueClass(*head, f"{family.name}_sum", names, labels, family.meaning)

    def add(self, counts: Sequence[int], total: float) -> None:
        for value, count in zip(self._counts, counts, strict=True):
            if count:
                value.inc(count)
        if total:
            self._total.inc(total)

    @property
    def total(self) -> float:
        return float(self._total.get())

    def list_cumulative(self) -> list[tuple[str, float]]:
        """The upper bound of each bucket, and how many values are not above it."""
        cumulative, pairs = 0.0, []
        for bound, value in zip(self._bounds, self._counts, strict=True):
            cumulative += float(value.get())
            pairs.append((bound, cumulative))
        return pairs
