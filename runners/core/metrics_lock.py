"""The lock of the files of /metrics: counts that move from one file to another are in neither or both for a moment."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_files(folder: Path, moves: bool) -> Iterator[None]:
    """Hold the lock of the files in a folder; other processes may write values meanwhile.

    Args:
        moves: whether files are changed or removed, which nobody may read meanwhile.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if moves else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
