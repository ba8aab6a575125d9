"""The metrics of the workers as processes, which the parent process counts and writes.

The parent imports no other metrics: it would write those without labels, with the value 0.
"""

from __future__ import annotations

from runners.core.metric_families import CounterFamily, GaugeFamily

WORKER_DEATHS = CounterFamily(
    "runtime_worker_deaths", "Worker processes that ended although the server went on, or ended the server", ("reason",)
)
WORKERS = GaugeFamily("runtime_workers", "Worker processes that run, also those that are not ready")
