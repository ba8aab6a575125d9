"""In the parent process: the deaths of workers, each a line in the log and one more in the metrics."""

from __future__ import annotations

import signal
from enum import StrEnum


class DeathReason(StrEnum):
    """Why a worker has ended: by a signal, by itself, or because its event loop had stopped."""

    KILLED = "killed"
    FAILED = "failed"
    FROZEN = "frozen"


class WorkerMetrics:
    """`runtime_worker_deaths_total` and `runtime_workers`, in the parent's files of the folder of /metrics.

    Made once the environment names that folder, which prometheus_client reads when it is imported.
    """

    def __init__(self) -> None:
        from runners.core.worker_metrics import WORKER_DEATHS, WORKERS

        self._deaths, self._workers = WORKER_DEATHS, WORKERS
        # With the value 0, so that the first death is an increase.
        for reason in DeathReason:
            self._deaths.add((reason.value,), 0)
        self.set_workers(0)

    def add_death(self, reason: DeathReason) -> None:
        self._deaths.add((reason.value,))
        self._flush()

    def set_workers(self, count: int) -> None:
        self._workers.set((), count)
        self._flush()

    def _flush(self) -> None:
        self._deaths.flush()
        self._workers.flush()


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
