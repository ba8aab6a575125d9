"""In the parent process: the deaths of workers, each a line in the log and one more in the metrics."""

from __future__ import annotations

import logging
import os
import signal
from enum import StrEnum

from prometheus_client.values import MultiProcessValue

logger = logging.getLogger(__name__)

_DEATHS, _WORKERS = "runtime_worker_deaths", "runtime_workers"


class DeathReason(StrEnum):
    """Why a worker has ended: by a signal, by itself, or because its event loop had stopped."""

    KILLED = "killed"
    FAILED = "failed"
    FROZEN = "frozen"


class WorkerMetrics:
    """`runtime_worker_deaths_total` and `runtime_workers`, in the parent's files of the folder of /metrics."""

    def __init__(self, folder: str) -> None:
        """
        Args:
            folder: the workers' folder of metrics. BentoML sets no variable that names it in its parent process.
        """
        os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", folder)
        value = MultiProcessValue()  # type: ignore[no-untyped-call]
        # With the value 0, so that the first death is an increase.
        about = "Worker processes that have ended although the server goes on, by reason"
        self._deaths = {
            reason: value("counter", _DEATHS, f"{_DEATHS}_total", ("reason",), (reason.value,), about)
            for reason in DeathReason
        }
        about = "Worker processes that run, also those that are not ready"
        self._workers = value("gauge", _WORKERS, _WORKERS, (), (), about, multiprocess_mode="livesum")

    def add_death(self, reason: DeathReason) -> None:
        self._deaths[reason].inc(1)

    def add_worker(self, change: int) -> None:
        """Add 1 for a worker that begins, and -1 for one that ends."""
        self._workers.inc(change)


def classify_death(exit_code: int | None, was_frozen: bool) -> tuple[DeathReason, str]:
    """The reason of a death, and what the log says of it.

    Args:
        exit_code: negative for a signal, as `subprocess` has it; None if it is unknown.
        was_frozen: whether the supervisor has killed the worker.
    """
    if was_frozen:
        return DeathReason.FROZEN, "was killed because its event loop had stopped"
    if exit_code is None:
        return DeathReason.FAILED, "has ended"
    if exit_code >= 0:
        return DeathReason.FAILED, f"has ended with exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = ", as the kernel does when memory runs out" if -exit_code == signal.SIGKILL else ""
    return DeathReason.KILLED, f"was ended by {name}{hint}"
