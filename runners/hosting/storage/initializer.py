"""KServe's storage initializer: its patterns of files, its archives and its log.

It has no interface for progress, sizes or archives, so that its log and one of its private methods are used;
tests/test_private_names.py lists both.
"""

from __future__ import annotations

import contextlib
import glob
import logging
from collections.abc import Iterator
from pathlib import Path

from runners.core.redaction import redact
from runners.hosting.storage.archives import unpack_archive
from runners.hosting.storage.progress import Progress
from runners.hosting.storage.uris import PATTERN_VARIABLES

logger = logging.getLogger(__name__)

LOGGER_NAME = "storage.initializer"
# Templates of records, with the arguments (name, bytes) and (name,).
S3_SIZE, GCS_SIZE = "Found S3 object: %s (%d bytes)", "Found blob: %s (%d bytes)"
SKIPPED = "Skipping %s due to file pattern filter"


def read_patterns(variable: str) -> list[str] | None:
    """The patterns in one of PATTERN_VARIABLES, as KServe parses them; None if it is unset."""
    from kserve_storage.kserve_storage import _parse_patterns_from_env

    patterns: list[str] | None = _parse_patterns_from_env(variable)
    return patterns


def ignore_files(complete: list[tuple[str, int]]) -> list[str] | None:
    """KServe's `ignore_patterns` that leave out files; None if the environment's patterns apply.

    Args:
        complete: the names and bytes of files that are not to be downloaded again.
    """
    if not complete:
        return None
    return [*(read_patterns("STORAGE_IGNORE_PATTERNS") or []), *(glob.escape(name) for name, _ in complete)]


@contextlib.contextmanager
def replace_unpacking(progress: Progress) -> Iterator[None]:
    """Unpack archives in place of KServe, which limits neither their bytes nor their members."""
    from kserve_storage import Storage

    def unpack(path: str, kind: str, folder: str) -> str:
        progress.stop()
        logger.info("unpacking %s", progress.redacted_uri)
        unpack_archive(Path(path), kind, Path(folder), progress.redacted_uri)
        return folder

    stock = Storage._unpack_archive_file
    Storage._unpack_archive_file = staticmethod(unpack)
    try:
        yield
    finally:
        Storage._unpack_archive_file = staticmethod(stock)


@contextlib.contextmanager
def follow_log(progress: Progress) -> Iterator[None]:
    """Read the sizes of files from KServe's log, and log its warnings without the credentials of URIs."""
    storage_logger = logging.getLogger(LOGGER_NAME)
    handler = _Handler(progress)
    level, propagate = storage_logger.level, storage_logger.propagate
    storage_logger.addHandler(handler)
    storage_logger.setLevel(logging.INFO)
    storage_logger.propagate = False
    try:
        yield
    finally:
        storage_logger.removeHandler(handler)
        storage_logger.setLevel(level)
        storage_logger.propagate = propagate


class _Handler(logging.Handler):
    """Passes sizes to the progress, which refuses files without room; KServe raises the errors that it logs."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._is_filtered = progress.complete > 0 or any(map(read_patterns, PATTERN_VARIABLES))

    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (str(name), int(count)) if record.msg in (S3_SIZE, GCS_SIZE):
                # The previous file is certain by now: KServe logs that it skips a file after its size.
                self._progress.check_room()
                self._progress.expect(name, count)
                if not self._is_filtered:
                    self._progress.check_room()
            case (str(name),) if record.msg == SKIPPED:
                self._progress.expect(name, 0)
        level = logging.WARNING if record.levelno == logging.WARNING else logging.DEBUG
        logger.log(level, "%s", redact(record.getMessage()))
