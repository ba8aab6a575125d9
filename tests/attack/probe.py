"""What other clients notice, seen from a process of its own: liveness, another user's text, the worker's memory.

    python -m tests.attack.probe PORT WORKER_PID FILE BODY

It asks until its standard input ends, and writes a line for each answer: what was asked, when (monotonic seconds, which
all processes of a machine share), and after how many seconds there was a 200; `nan` where there was a refusal, such as a
429, and `inf` where there was no answer.
"""

from __future__ import annotations

import http.client
import math
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil

FRESH, KEPT, OTHER, MEMORY = "fresh", "kept", "other", "memory"
# Seconds between two questions of a kind.
PERIODS = {FRESH: 0.02, KEPT: 0.02, OTHER: 0.25, MEMORY: 0.05}
_LIVE = "/v2/health/live"
_PREDICT = "/v1/models/model:predict"
# Longer than a run waits for any case.
_TIMEOUT = 150
# Bytes at which the worker is killed, which fails its case: the machine has others.
_MOST_MEMORY = 6 * 2**30
# They come at once, and say when to come again.
_REFUSALS = (429, 503)
_JSON = {"content-type": "application/json"}


def quantile(values: list[float], share: float) -> float:
    """The value that such a share is not above; NaN of none."""
    return sorted(values)[min(len(values) - 1, math.floor(share * len(values)))] if values else math.nan


@dataclass(frozen=True)
class Seen:
    """What was measured in a span of time: seconds of each answer, bytes of memory."""

    values: dict[str, list[float]]

    def latencies(self, kind: str) -> list[float]:
        """With those of the questions that a slow answer kept from being asked, or a stall would count once."""
        period = PERIODS[kind]
        return [
            seconds - missed * period
            for seconds in self.values.get(kind, [])
            if not math.isnan(seconds)
            for missed in range(1 + (int(seconds / period) if math.isfinite(seconds) else 0))
        ]

    @property
    def liveness(self) -> list[float]:
        """Seconds of the answers to the probes of liveness, over fresh connections and over the kept one."""
        return [*self.latencies(FRESH), *self.latencies(KEPT)]

    @property
    def peak(self) -> float:
        """Bytes."""
        return max(self.values.get(MEMORY, []), default=0.0)


class Probe:
    """The process that asks, and what it wrote."""

    def __init__(self, port: int, worker: int, file: Path, text: str) -> None:
        self._file = file
        # It is read before the process has begun.
        file.touch()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.attack.probe", str(port), str(worker), str(file), text],
            stdin=subprocess.PIPE,
        )

    def between(self, start: float, end: float) -> Seen:
        """What was asked in a span of time and has an answer."""
        values: dict[str, list[float]] = defaultdict(list)
        for line in self._file.read_text().splitlines():
            kind, asked, value = line.split()
            if start <= float(asked) <= end:
                values[kind].append(float(value))
        return Seen(values)

    def answered_since(self, moment: float) -> bool:
        """Whether every kind of question that was asked after a moment has been answered."""
        seen = self.between(moment, math.inf).values
        return all(any(map(math.isfinite, seen[kind])) for kind in (FRESH, KEPT, OTHER))

    def close(self) -> None:
        self._process.communicate()


def main(port: int, worker: int, file: Path, text: str) -> None:
    process = psutil.Process(worker)
    kept = _connect(port)

    def ask_fresh() -> float:
        connection = _connect(port)
        try:
            return _ask(connection, "GET", _LIVE)
        finally:
            connection.close()

    def ask_other() -> float:
        connection = _connect(port)
        try:
            return _ask(connection, "POST", _PREDICT, text)
        finally:
            connection.close()

    def weigh_or_kill() -> float:
        if (memory := weigh(process)) > _MOST_MEMORY:
            process.kill()
        return memory

    questions: dict[str, Callable[[], float]] = {
        FRESH: ask_fresh, KEPT: lambda: _ask(kept, "GET", _LIVE), OTHER: ask_other, MEMORY: weigh_or_kill,
    }  # fmt: skip
    stopped = threading.Event()
    with file.open("w", buffering=1) as out:
        threads = [threading.Thread(target=_repeat, args=(*each, out, stopped)) for each in questions.items()]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        stopped.set()
        for thread in threads:
            thread.join(_TIMEOUT)


def weigh(process: psutil.Process) -> float:
    """Bytes in memory of a process and of what it has started: a generator's engine may be one of its own."""
    return float(sum(each.memory_info().rss for each in (process, *process.children(recursive=True))))


def _repeat(kind: str, question: Callable[[], float], out: TextIO, stopped: threading.Event) -> None:
    period = PERIODS[kind]
    while not stopped.is_set():
        asked = time.monotonic()
        try:
            value = question()
        except (OSError, http.client.HTTPException, psutil.Error):
            value = math.inf if kind != MEMORY else 0.0
        out.write(f"{kind} {asked} {value}\n")
        stopped.wait(max(period - (time.monotonic() - asked), 0.001))


def _connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT)


def _ask(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> float:
    """Seconds until a 200; NaN where a prediction is refused."""
    started = time.monotonic()
    try:
        connection.request(method, path, body, _JSON)
        response = connection.getresponse()
        response.read()
    except (OSError, http.client.HTTPException):
        # It connects again when it asks again.
        connection.close()
        raise
    if method == "POST" and response.status in _REFUSALS:
        return math.nan
    return time.monotonic() - started if response.status == 200 else math.inf


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
