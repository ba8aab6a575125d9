"""The signals that stop the server, before it can drain. PID 1 of a container ignores signals without a handler."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


def heed_early_signals() -> None:
    """In BentoML's parent process: end at once on a signal to stop, until the arbiter has its own handlers.

    Nothing is served yet. Signals that launch.py has held back are heeded now. SIGHUP is ignored until the end.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def _ignore(number: int, _: FrameType | None) -> None:
    logger.warning("%s is ignored: certificates and keys are read when they change", signal.Signals(number).name)


def _end(_: int, __: FrameType | None) -> None:
    # An exception would wait for threads that download.
    os._exit(0)
