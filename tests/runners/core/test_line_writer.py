from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from runners.core.line_writer import LineWriter
from tests.servers import ROOT

LINE = b"x" * 99 + b"\n"
# A pipe has room for 64 KiB, which nobody reads.
FULL = 64 * 2**10 // len(LINE) + 50


def report(count: int, urgent: int) -> bytes:
    return f"lost {count} {urgent}\n".encode()


@pytest.fixture
def pipe() -> tuple[int, int]:
    """It stays open: a thread that still writes must not write to another file of the same number."""
    return os.pipe()


def read_until(source: int, has_ended: Callable[[bytes], bool]) -> bytes:
    found = b""
    while not has_ended(found):
        found += os.read(source, 2**16)
    return found


def test_lines_come_in_order(pipe: tuple[int, int]) -> None:
    source, sink = pipe
    writer = LineWriter(sink, report)
    lines = [f"line {number}\n".encode() for number in range(1000)]
    for line in lines:
        writer.write(line)
    assert writer.flush(5)
    assert os.read(source, 2**16) == b"".join(lines)


@pytest.mark.parametrize("is_blocking", [True, False])
def test_a_full_pipe_blocks_nobody_and_losses_are_reported(pipe: tuple[int, int], is_blocking: bool) -> None:
    source, sink = pipe
    os.set_blocking(sink, is_blocking)
    writer = LineWriter(sink, report, most_bytes=20_000)
    for _ in range(FULL):
        writer.write(LINE)
        time.sleep(0.0001)
    start = time.perf_counter()
    for _ in range(10_000):
        writer.write(LINE)
    for _ in range(100):
        writer.write(b"error\n", is_urgent=True)
    assert time.perf_counter() - start < 1
    assert not writer.flush(0.1), "the pipe is full"
    found = read_until(source, lambda data: b"lost" in data and data.endswith(b"\n"))
    [lost] = [line.split() for line in found.splitlines() if line.startswith(b"lost")]
    assert found.count(b"error\n") == 100, "there is room for errors"
    assert lost[2] == b"0"
    assert found.count(LINE) + int(lost[1]) == FULL + 10_000


def test_lost_errors_are_counted(pipe: tuple[int, int]) -> None:
    writer = LineWriter(pipe[1], report, most_bytes=1000)
    for _ in range(2000):
        writer.write(LINE, is_urgent=True)
    read_until(pipe[0], lambda data: b"lost" in data)


def test_urgent_lines_do_not_wait(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.core.line_writer._GATHER_SECONDS", 30)
    writer = LineWriter(pipe[1], report)
    writer.write(b"first\n")
    time.sleep(0.1)
    writer.write(b"error\n", is_urgent=True)
    assert read_until(pipe[0], lambda data: data.count(b"\n") == 2) == b"first\nerror\n"


def test_a_reader_that_is_gone() -> None:
    source, sink = os.pipe()
    os.close(source)
    writer = LineWriter(sink, report, most_bytes=1000)
    for _ in range(100):
        writer.write(LINE)
        assert writer.flush(5)
    os.close(sink)


def test_lines_of_several_writers_do_not_mix(pipe: tuple[int, int]) -> None:
    writers = [LineWriter(pipe[1], report) for _ in range(4)]
    lines = [bytes([ord("a") + number]) * 700 + b"\n" for number in range(4)]

    def write() -> None:
        for _ in range(300):
            for writer, line in zip(writers, lines, strict=True):
                writer.write(line)

    threading.Thread(target=write).start()
    found = read_until(pipe[0], lambda data: data.count(b"\n") == 1200)
    assert {*found.splitlines(keepends=True)} == {*lines}


@pytest.mark.parametrize(
    "program",
    [
        "writer.write(b'kept\\n'); writer.flush(5); os._exit(0)",
        # As the log of a process that ends does, when no thread starts any more.
        "import atexit; atexit.register(lambda: (writer.write(b'kept\\n'), writer.flush(5)))",
        "os.fork() or (writer.write(b'kept\\n'), writer.flush(5))",
        "writer.write(b'kept\\n'); writer.flush(5); pid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)",
    ],
)
def test_what_waits_is_written_at_the_end(program: str) -> None:
    code = f"import os\nfrom runners.core.line_writer import LineWriter\nwriter = LineWriter(1, None)\n{program}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=20)
    assert (done.stdout, done.stderr) == (b"kept\n", b"")
