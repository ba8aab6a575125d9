from __future__ import annotations

import subprocess
import sys
import time

import psutil

from benchmarks.cpu import cpu_seconds, wait_until_idle

_BUSY = "import sys, time\nend = time.process_time() + 1.5\nwhile time.process_time() < end: pass\nsys.stdin.read()"


def test_waits_until_a_process_computes_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", _BUSY], stdin=subprocess.PIPE) as process:
        busy = [psutil.Process(process.pid)]
        wait_until_idle(busy)
        assert cpu_seconds(busy) > 1.4
        process.communicate()


def test_waits_no_longer_than_asked() -> None:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        start = time.monotonic()
        wait_until_idle([psutil.Process(process.pid)], seconds=1)
        assert 1 <= time.monotonic() - start < 30
        process.kill()
