"""Writes lines to a file descriptor in a thread, so that a slow reader of a pipe blocks nobody who logs."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Sequence

# Writes of at most so many bytes are atomic, so that the lines of several processes do not mix.
_ATOMIC_BYTES = select.PIPE_BUF
# Lines wait for each other, because a thread that wakes up takes the GIL from the event loop.
_GATHER_SECONDS = 0.02
_MOST_BYTES = 8 * 2**20
# The part of the bytes that urgent lines alone may take.
_RESERVED = 0.25

# Makes the line that reports dropped lines: how many there were, and how many of them were urgent.
ReportDropped = Callable[[int, int], bytes]


class LineWriter:
    """A bounded buffer of lines, and the thread that writes them.

    Where the reader is so slow that the buffer is full, lines are dropped; once the reader reads again, a line says how
    many. Lines of errors are urgent: they are written at once, and dropped last.

    Attributes:
        descriptor: the file descriptor, which stays open.
    """

    def __init__(self, descriptor: int, report_dropped: ReportDropped, most_bytes: int = _MOST_BYTES) -> None:
        """
        Args:
            most_bytes: the bytes of the lines that wait, at most.
        """
        self.descriptor = descriptor
        self._report_dropped = report_dropped
        self._most_bytes = most_bytes
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        """A forked process has neither the thread nor the lines, which its parent writes."""
        self._changed = threading.Condition()
        self._lines: list[bytes] = []
        self._bytes = 0
        self._dropped = self._dropped_urgent = 0
        self._is_urgent = self._is_writing = False
        self._thread: threading.Thread | None = None

    def write(self, line: bytes, is_urgent: bool = False) -> None:
        """Buffer a line, which ends with a line break. Never blocks."""
        limit = self._most_bytes if is_urgent else self._most_bytes * (1 - _RESERVED)
        with self._changed:
            if self._bytes + len(line) > limit:
                self._dropped += 1
                self._dropped_urgent += is_urgent
                return
            is_first = not self._lines
            self._lines.append(line)
            self._bytes += len(line)
            if self._thread is None:
                self._start()
            if is_urgent and not self._is_urgent:
                self._is_urgent = True
                self._changed.notify_all()
            elif is_first:
                self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until all lines are written, but not longer than `seconds`; whether they are."""
        with self._changed:
            self._is_urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, seconds)

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            # The interpreter ends, and starts no thread any more.
            self._thread = None
            lines, self._lines, self._bytes = self._lines, [], 0
            self._write_all(lines)

    def _run(self) -> None:
        while True:
            self._write_all(self._take())
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()

    def _take(self) -> list[bytes]:
        """Wait for lines."""
        with self._changed:
            self._changed.wait_for(lambda: self._lines or self._dropped)
            self._changed.wait_for(lambda: self._is_urgent, _GATHER_SECONDS)
            lines, self._lines = self._lines, []
            if self._dropped:
                lines.append(self._report_dropped(self._dropped, self._dropped_urgent))
            self._dropped = self._dropped_urgent = 0
            self._is_urgent, self._is_writing = False, True
            return lines

    def _write_all(self, lines: Sequence[bytes]) -> None:
        part: list[bytes] = []
        size = 0
        for line in lines:
            if part and size + len(line) > _ATOMIC_BYTES:
                self._write_part(b"".join(part))
                part, size = [], 0
            part.append(line)
            size += len(line)
        if part:
            self._write_part(b"".join(part))

    def _write_part(self, data: bytes) -> None:
        size = len(data)
        while data:
            try:
                data = data[os.write(self.descriptor, data) :]
            except BlockingIOError:
                # Who made the pipe may have made it non-blocking.
                waiting = select.poll()
                waiting.register(self.descriptor, select.POLLOUT)
                waiting.poll()
            except OSError:
                # The reader is gone.
                break
        with self._changed:
            self._bytes = max(0, self._bytes - size)
