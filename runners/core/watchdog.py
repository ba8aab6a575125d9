"""Notices what runs a model and gives no result any more, such as a device thread in one batch, and says where."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Protocol

logger = logging.getLogger(__name__)


class Watched(Protocol):
    """What runs models: a device thread, or an engine in a process of its own.

    Attributes:
        stuck: whether no result is expected any more; the watchdog sets it.
    """

    stuck: bool

    def owes_since(self) -> float | None:
        """Since when it has given no result although it owes one, by `time.perf_counter`; None if it owes none."""

    def describe_stall(self, seconds: float) -> str:
        """What the log says of it.

        Args:
            seconds: for how long it has given no result.
        """


class Watchdog:
    """Compares the time for which results are owed with a limit."""

    def __init__(self, list_watched: Callable[[], Iterable[Watched]], seconds: float) -> None:
        """
        Args:
            list_watched: what runs models now.
            seconds: a result may take this long; 0: any time.
        """
        self._list_watched = list_watched
        self._seconds = seconds
        # What is stuck, and since when.
        self._stuck: dict[Watched, float] = {}

    def check(self) -> bool:
        """Whether a result takes too long. Sets `stuck` of what owes it, and logs when that changes."""
        stuck: dict[Watched, float] = {}
        now = time.perf_counter()
        for watched in self._list_watched():
            since = watched.owes_since()
            watched.stuck = False
            if self._seconds and since is not None and now - since > self._seconds:
                watched.stuck, stuck[watched] = True, since
                if self._stuck.get(watched) != since:
                    logger.error(
                        "the server is not live (--watchdog_seconds=%g): %s",
                        self._seconds, watched.describe_stall(now - since),
                    )  # fmt: skip
        if self._stuck and not stuck:
            logger.warning("the server is live again: nothing is stuck any more")
        self._stuck = stuck
        return bool(stuck)
