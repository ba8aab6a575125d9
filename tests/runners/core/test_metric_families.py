"""Counters, gauges and histograms that are written once a second, from many threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

from runners.core.metric_families import (
    CounterFamily,
    GaugeFamily,
    HistogramFamily,
    counting,
    flush,
    is_removed,
    list_families,
)

WORKER = """
from runners.core.metric_families import *
counter, gauge = CounterFamily("shared", "", ["a"]), GaugeFamily("level", "", ["a"])
histogram = HistogramFamily("times", "", ["a"], bounds=(1.0, 2.0))
for _ in range(2):
    counter.add(("x",), 2)
    gauge.set(("x",), 3)
    with counting:
        for value in (0.5, 1.0, 1.5, 9.0):
            histogram.series("x").observe(value)
    flush()
"""


GAUGES = """
import sys
from runners.core.metric_families import *
gauges = GaugeFamily("least", "", mode="livemin"), GaugeFamily("most", "", mode="livemax")
for gauge in gauges:
    gauge.set((), 5)
flush()
if sys.argv[1] == "remove":
    for gauge in gauges:
        gauge.remove(())
flush()
"""


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def read(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    flush()
    return registry.get_sample_value(name, labels)


def test_threads_lose_no_count(registry: CollectorRegistry) -> None:
    """Also while another thread writes."""
    counter = CounterFamily("threads", "", ["a"], registry)
    histogram = HistogramFamily("threads_seconds", "", ["a"], registry=registry)
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def count() -> None:
        for _ in range(5000):
            counter.add(("x",))
            with counting:
                histogram.series("x").observe(0.25)

    try:
        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            flush()
    finally:
        sys.setswitchinterval(switch)
    assert read(registry, "threads_total", a="x") == 20_000
    assert read(registry, "threads_seconds_count", a="x") == 20_000
    assert read(registry, "threads_seconds_sum", a="x") == 5_000


def test_a_histogram_is_as_that_of_the_library(registry: CollectorRegistry) -> None:
    bounds, values = (0.1, 1.0, 10.0), (0.05, 0.1, 0.5, 1.0, 1.1, 10.0, 11.0, 0.0)
    other = CollectorRegistry()
    theirs = Histogram("seconds", "meaning", ["a"], buckets=bounds, registry=other).labels("x")
    ours = HistogramFamily("seconds", "meaning", ["a"], bounds, registry)
    for value in values:
        theirs.observe(value)
        with counting:
            ours.series("x").observe(value)
    flush()

    def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        [family] = registry.collect()
        assert (family.name, family.type, family.documentation) == ("seconds", "histogram", "meaning")
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert samples(registry) == samples(other)


def test_a_histogram_under_two_names(registry: CollectorRegistry) -> None:
    second = HistogramFamily("second_seconds", "", ["a"], registry=registry)
    first = HistogramFamily("first_seconds", "", ["a"], registry=registry, other_names=[second])
    with counting:
        first.series("x").observe(0.5)
    assert read(registry, "first_seconds_sum", a="x") == 0.5
    assert read(registry, "second_seconds_sum", a="x") == 0.5
    assert read(registry, "second_seconds_bucket", a="x", le="0.5") == 1


def test_a_series_is_shown_before_it_counts(registry: CollectorRegistry) -> None:
    counter, gauge = CounterFamily("early", "", ["a"], registry), GaugeFamily("level", "", ["a"], registry=registry)
    histogram = HistogramFamily("early_seconds", "", ["a"], registry=registry)
    with counting:
        counter.series("x")
        gauge.series("x")
        histogram.series("x")
    assert [read(registry, name, a="x") for name in ("early_total", "level", "early_seconds_count")] == [0, 0, 0]
    assert {"early_total", "level", "early_seconds"} <= {family.name for family in list_families()}


def test_a_family_that_cannot_be_written_keeps_no_other(
    registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    gauge, counter = GaugeFamily("broken", "", registry=registry), CounterFamily("whole", "", registry=registry)
    gauge.set((), 3)
    counter.add(())
    with monkeypatch.context() as patch:
        patch.setattr(gauge._gauge, "set", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flush()
    assert registry.get_sample_value("whole_total") == 1
    flush()
    assert registry.get_sample_value("broken") == 3


def test_the_values_of_all_processes_are_added(tmp_path: Path) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [subprocess.Popen([sys.executable, "-c", WORKER], env=environment) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    values = {
        (sample.name, sample.labels.get("le")): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert values == {
        ("shared_total", None): 8, ("level", None): 6, ("times_sum", None): 48, ("times_count", None): 16,
        ("times_bucket", "1.0"): 8, ("times_bucket", "2.0"): 12, ("times_bucket", "+Inf"): 16,
    }  # fmt: skip


@pytest.mark.parametrize(("others", "values"), [(["remove", "keep"], {5}), (["remove", "remove"], set())])
def test_a_gauge_that_is_removed_is_that_of_other_workers(
    tmp_path: Path, others: list[str], values: set[float]
) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [subprocess.Popen([sys.executable, "-c", GAUGES, word], env=environment) for word in others]
    assert [worker.wait() for worker in workers] == [0, 0]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    found = [sample.value for family in registry.collect() for sample in family.samples]
    assert len(found) == 2
    assert {value for value in found if not is_removed(value)} == values
