"""Tells when files change that the operator replaces while the server runs: certificates, API keys and models."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

_CHECK_SECONDS = 1.0
# Device, inode, modification time in nanoseconds and size; None while there is no file.
_State = tuple[int, int, int, int] | None
# The states of a folder's files by their paths.
FolderState = frozenset[tuple[str, _State]]


class FileWatch:
    """Compares files with the state that was accepted last; it checks the files at most once a second."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._accepted: list[_State] = []
        self._latest: list[_State] = []
        self._next_check = -math.inf

    def has_changed(self) -> bool:
        """Whether a file is missing or differs from the accepted state. Before the first `accept` every file does.

        False without a check if the last check was less than a second ago.
        """
        now = time.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + _CHECK_SECONDS
        self._latest = [_describe(path) for path in self._paths]
        return self._latest != self._accepted

    def accept(self) -> None:
        """Accept the state that the last check found: the caller has read the files, or will not read them."""
        self._accepted = self._latest


def describe_folder(folder: str) -> FolderState:
    """The states of the files in a folder and in the folders in it; empty if there is no such folder."""
    paths = [path for pattern in ("*", "*/*") for path in Path(folder).glob(pattern) if path.is_file()]
    return frozenset((str(path), _describe(str(path))) for path in paths)


def _describe(path: str) -> _State:
    try:
        # Follows links: Kubernetes replaces a secret by pointing a link elsewhere.
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size
