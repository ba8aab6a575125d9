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

    Nothing is served yet. Signals that launch.py or an image's entry point has held back are heeded now. SIGHUP is
    ignored until the end.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    ignore_hangups(logs=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def ignore_hangups(logs: bool) -> None:
    """Ignore SIGHUP, in the parent process.

    Args:
        logs: whether by a handler, which writes a line. Else processes that are started now ignore SIGHUP too: they
            inherit no handlers.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, _ignore if logs else signal.SIG_IGN)


def _ignore(number: int, _: FrameType | None) -> None:
    logger.warning("%s is ignored: certificates and keys are read when they change", signal.Signals(number).name)


def _end(_: int, __: FrameType | None) -> None:
    # An exception would wait for threads that download.
    os._exit(0)
