from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.soak.process_tree import cpu_seconds, find_processes, read_used, trim, weigh
from tests.waiting import wait_until

MIB = 2**20
HEAPS = Path(__file__).resolve().parent / "heaps"
# A cycle that Python does not look for, and pieces too small for mappings of their own below one that stays.
GARBAGE = """
import gc, sys
gc.disable()
pieces = [b"x" * 100_000 for _ in range(1000)]
last = pieces.pop()
pieces.append(pieces)
del pieces
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def start(code: str, **environment: str) -> Iterator[int]:
    """The id of a Python process that has said it is ready."""
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()
        assert process.returncode == 0


def test_a_prepared_process_returns_what_its_heaps_do_not_use(tmp_path: Path) -> None:
    with start(GARBAGE, PYTHONPATH=str(HEAPS), SOAK_HEAPS=str(tmp_path)) as pid:
        before = weigh(pid).memory
        assert before > 90 * MIB
        trim(pid)
        wait_until(lambda: weigh(pid).memory < before - 80 * MIB)
        wait_until(lambda: (tmp_path / str(pid)).exists() and (tmp_path / str(pid)).read_text())
        used = read_used(tmp_path, [pid, 1])
    assert 0 < used.heap_bytes < 20 * MIB
    assert used.python_blocks > 1000
    assert used.threads == ("MainThread",)


def test_another_process_gets_no_signal() -> None:
    with start(GARBAGE) as pid:
        trim(pid)


def test_what_a_process_holds() -> None:
    before, used = weigh(os.getpid()), cpu_seconds(os.getpid())
    kept, stop = b"x" * (64 * MIB), threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        held = weigh(os.getpid())
    finally:
        os.close(descriptor)
        stop.set()
        thread.join()
    assert held.memory - before.memory == pytest.approx(len(kept), rel=0.1)
    assert held.threads - before.threads == 1
    assert held.descriptors - before.descriptors == 1
    assert cpu_seconds(os.getpid()) >= used


def test_children_count_too() -> None:
    with start("print('ready', flush=True); import sys; sys.stdin.read()") as pid:
        assert {os.getpid(), pid} <= {process.pid for process in find_processes(os.getpid())}
        assert {os.getpid(), pid} <= weigh(os.getpid()).processes
    assert find_processes(pid) == []
    assert not psutil.pid_exists(pid)
