"""One download of a model at a time on a machine, which SIGTERM ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import FileLock, Timeout

from runners.core.errors import ModelLoadError
from runners.hosting.storage.progress import writing
from runners.hosting.storage.uris import CACHE_VARIABLE

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def lock_download(path: Path, redacted_uri: str) -> Iterator[None]:
    """Hold the lock file of a download; wait while another process of this machine holds it.

    Args:
        redacted_uri: the URI without credentials, for messages.

    Raises:
        ModelLoadError: the cache folder is not writable.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that downloads %s", redacted_uri)
            lock.acquire()
    except OSError as error:
        raise ModelLoadError(
            f"{redacted_uri} cannot be kept in {path.parent}: {error.strerror}; {CACHE_VARIABLE} names another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Handle SIGTERM: the first process of a container ignores it without a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _after_fork_in_child() -> None:
    writing.release()
    # KServe's pool ends its processes by SIGTERM; a child that waits for a lock would never run a handler in Python.
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(before=writing.acquire, after_in_parent=writing.release, after_in_child=_after_fork_in_child)
