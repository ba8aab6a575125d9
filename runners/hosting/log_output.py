"""Where the lines of the log go: the standard output, past what libraries print themselves."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time

from runners.core.line_writer import LineWriter
from runners.core.log_lines import JSON_START, Render, render_fields
from runners.core.redaction import hide_users

_FLUSH_SECONDS = 1.0
# Longer lines are split: an endless one must not fill the memory.
_LONGEST_LINE = 64 * 2**10
# The real standard output, once this server reads its own; the workers inherit it.
_DESCRIPTOR_VARIABLE = "HUGGINGFACE_RUNTIME_LOG"
_END = b"\0the end of the log\0"


class LogHandler(logging.Handler):
    """Writes records as lines, in a thread."""

    def __init__(self, render: Render, descriptor: int) -> None:
        super().__init__()
        self.render = render
        self.writer = LineWriter(descriptor, self._report_dropped)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.render(record)
        except Exception as error:
            # logging itself would print the arguments, which may be texts.
            place = f"{record.pathname}:{record.lineno}"
            line = self._render_own(logging.ERROR, f"a record of {place} is wrong: {type(error).__name__}")
        self.writer.write(line, record.levelno >= logging.ERROR)

    def flush(self) -> None:
        """Write what waits; logging calls it when the process ends."""
        self.writer.flush(_FLUSH_SECONDS)

    def _report_dropped(self, count: int, errors: int) -> bytes:
        message = f"{count} lines of the log are lost, {errors} of errors: the reader of the output is too slow"
        return self._render_own(logging.WARNING, message)

    def _render_own(self, level: int, message: str) -> bytes:
        fields = {"name": __name__, "levelno": level, "levelname": logging.getLevelName(level), "msg": message}
        return self.render(logging.makeLogRecord(fields))


def open_output(is_worker: bool) -> int:
    """The descriptor of the standard output, which stays the same when what libraries print is read.

    Args:
        is_worker: whether the parent has opened it, and may read what this process prints.
    """
    if is_worker and (inherited := os.environ.get(_DESCRIPTOR_VARIABLE)) is not None:
        return int(inherited)
    descriptor = os.dup(1)
    os.set_inheritable(descriptor, True)
    return descriptor


class StrayLines:
    """What libraries and the processes that they start print, as lines of JSON.

    BentoML's parent process reads it from a pipe, which is the standard output and the standard error of the parent and
    of all processes that it starts. It would outlive a process that crashes, so that the last words of one are read.
    """

    def __init__(self, writer: LineWriter) -> None:
        """
        Args:
            writer: writes to the real standard output.
        """
        self._writer = writer
        self._has_ended = threading.Event()
        self._source, sink = os.pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        os.close(sink)
        os.environ[_DESCRIPTOR_VARIABLE] = str(writer.descriptor)
        threading.Thread(target=self._run, name="stray-lines", daemon=True).start()

    def end(self) -> None:
        """Wait until all that is printed so far is read."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.write(1, _END + b"\n")
        self._has_ended.wait(_FLUSH_SECONDS)

    def _run(self) -> None:
        rest = b""
        while chunk := os.read(self._source, 64 * 2**10):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._pass_on(line)
            if len(rest) > _LONGEST_LINE:
                self._pass_on(rest)
                rest = b""

    def _pass_on(self, line: bytes) -> None:
        # What is printed last may have no line break.
        is_end = line.endswith(_END)
        line = line.removesuffix(_END)
        if line.startswith(JSON_START):
            self._writer.write(line + b"\n", is_urgent=True)
        elif text := _last_state(line):
            self._writer.write(render_fields(time.time(), "info", "output", {"message": hide_users(text)}))
        if is_end:
            self._has_ended.set()


def _last_state(line: bytes) -> str:
    """What a terminal would show of a line: the end of a progress bar, without colours."""
    text = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
