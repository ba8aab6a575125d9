"""The progress of a download, on a terminal or in the log."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from runners.core.errors import ModelLoadError
from runners.core.machine import format_size
from runners.hosting.storage.disk import find_room

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5.0
_DRAW_SECONDS = 0.25
# Held while progress is written. KServe forks, and a lock that another thread holds at that time, such as that of
# stderr, is never released in the child.
writing = threading.Lock()


@dataclass
class Progress:
    """Shows the bytes on the disk: as a bar on a terminal, else as a line in the log every few seconds.

    Attributes:
        redacted_uri: the URI without credentials.
        folder: the folder of the download.
        complete: the bytes that an earlier download has left; the expected bytes do not include them.
        room: the bytes that the folder may hold at most, including those that it holds now.
    """

    redacted_uri: str
    folder: Path
    complete: int = 0
    room: int = field(init=False)
    _expected: dict[str, int] = field(default_factory=dict)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.room = find_room(self.folder) + self.count()

    def __enter__(self) -> Progress:
        watch = self._draw if sys.stderr.isatty() else self._log
        self._watcher = threading.Thread(target=watch, name="progress", daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        self._watcher.join()

    def expect(self, name: str, count: int) -> None:
        """Add a file of so many bytes to the expected bytes; a second call for the same name replaces the first."""
        self._expected[name] = count

    def check_room(self) -> None:
        """
        Raises:
            ModelLoadError: the expected bytes do not fit on the disk.
        """
        if (total := self._total() or 0) > self.room:
            raise ModelLoadError(
                f"{self.redacted_uri} has {format_size(total)}, which is more than the {format_size(self.room)} that "
                "the disk has room for"
            )

    def count(self) -> int:
        """The bytes in the folder."""
        total = 0
        for parent, _, names in os.walk(self.folder):
            for name in names:
                # The file may be renamed at the same time.
                with contextlib.suppress(OSError):
                    total += os.lstat(os.path.join(parent, name)).st_size
        return total

    def _total(self) -> int | None:
        return self.complete + sum(self._expected.values()) if any(self._expected.values()) else None

    def _draw(self) -> None:
        with writing:
            bar = _Bar(
                desc=self.redacted_uri,
                initial=self.count(),
                unit="B",
                unit_scale=True,
                unit_divisor=1024,
                file=sys.stderr,
            )
        done = False
        while not done:
            done = self._stopped.wait(_DRAW_SECONDS)
            with writing:
                bar.total = self._total()
                bar.update(self.count() - bar.n)
        with writing:
            bar.close()

    def _log(self) -> None:
        before = self.count()
        while not self._stopped.wait(_LOG_SECONDS):
            now, total = self.count(), self._total()
            of = "" if total is None else f" of {format_size(total)}"
            speed = format_size(max(now - before, 0) / _LOG_SECONDS)
            with writing:
                logger.info("%s: downloaded %s%s, %s/s", self.redacted_uri, format_size(now), of, speed)
            before = now


class _Bar(tqdm):  # type: ignore[misc]
    # Disables the monitor thread of tqdm, which could hold a lock when KServe forks.
    monitor_interval = 0
