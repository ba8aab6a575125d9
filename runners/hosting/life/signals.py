"""SIGTERM and SIGINT before the server can drain. PID 1 of a container ignores signals without a handler."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def heed_early_signals() -> None:
    """In BentoML's parent process: end at once on a signal to stop, until the arbiter has its own handlers.

    Nothing is served yet. Signals that launch.py or an image's entry point has held back are heeded now.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _end(_: int, __: FrameType | None) -> None:
    # An exception would wait for threads that download.
    os._exit(0)
