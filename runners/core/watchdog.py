"""Notices a device thread that is stuck in one turn, such as a batch, and says where."""

from __future__ import annotations

import logging
import sys
import time
import traceback

from runners.core.device_thread import DeviceThread

logger = logging.getLogger(__name__)

# The innermost calls of the thread that the log shows.
_MOST_CALLS = 24


class Watchdog:
    """Compares the time of the running turns with a limit."""

    def __init__(self, device: DeviceThread, seconds: float) -> None:
        """
        Args:
            seconds: a turn may take this long; 0: any time.
        """
        self._device = device
        self._seconds = seconds
        self._stuck_since: float | None = None

    def check(self) -> bool:
        """Whether a turn takes too long. Sets `stuck` of the device, and logs when that changes."""
        since, thread = self._device.oldest_turn() or (None, 0)
        is_stuck = bool(self._seconds) and since is not None and time.perf_counter() - since > self._seconds
        self._device.stuck = is_stuck
        if is_stuck and since != self._stuck_since:
            logger.error(
                "a batch takes longer than %g s (--watchdog_seconds): the server is not live; its thread stands in %s",
                self._seconds, describe_stack(thread),
            )  # fmt: skip
        elif self._stuck_since is not None and not is_stuck:
            logger.warning("the batch that took too long has ended: the server is live again")
        self._stuck_since = since if is_stuck else None
        return is_stuck


def describe_stack(thread: int) -> str:
    """The calls of a thread in one line, the innermost first: names of functions, files and lines, and no values."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    calls = [
        f"{call.f_code.co_qualname} ({call.f_code.co_filename}:{line})" for call, line in traceback.walk_stack(frame)
    ]
    return " < ".join(calls[:_MOST_CALLS])
