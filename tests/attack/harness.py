"""Runs a case against a started server, and measures what others notice."""

from __future__ import annotations

import contextlib
import json
import math
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from runners.core.request_limits import RequestLimits
from tests.attack.case import Case, Outcomes, Ports, ServerKind
from tests.attack.probe import OTHER, Probe, Seen, weigh
from tests.servers import ServerProcess

_LIMITS = RequestLimits()
# What requests may hold beside the model: bodies under way, four times as many bytes of answers that are not read (or as
# many of messages of gRPC's streams that have no end), and the numbers of answers that are being made, in float32.
BUDGET = 5 * _LIMITS.max_buffered_bytes + 4 * 8 * _LIMITS.max_answer_numbers
_PEAK_SHARE = 1.5
_AFTER_SHARE = 1.05
# What heaps keep in parts that are not free as a whole, and what threads keep that have run once.
_SLACK = 96 * 2**20
# Seconds in which memory may come back after a case: runners/hosting/idle_memory.py looks every 5 s.
_REST = 6.0
# Seconds in which it must come back after all cases: what was tried in vain is tried again after a minute.
_LAST_REST = 70.0
# Seconds after which a server is given up where it is silent.
_LOST = 30.0
# What another user sends, which every task answers.
_OTHERS = {
    ServerKind.FILLER: "a [MASK]",
    ServerKind.READER: {"question": "who?", "context": "it was me"},
    ServerKind.LABELLER: ["a text", "another"],
}


@dataclass(frozen=True)
class Row:
    """What a case came to.

    Attributes:
        live: seconds of each probe's answer while the case went on.
        other: seconds of each answer to another user; of none that was refused.
        before, peak, after: bytes in memory.
        lost: whether the server has to be started again.
    """

    name: str
    statuses: Mapping[str, int]
    seconds: float
    live: list[float]
    other: list[float]
    before: float
    peak: float
    after: float
    problems: tuple[str, ...] = ()
    lost: bool = False

    @property
    def passed(self) -> bool:
        return not self.problems


class Target:
    """A started server, and the process that asks it beside the attacks."""

    def __init__(self, served: ServerKind, server: ServerProcess, folder: Path) -> None:
        self.server = server
        self.ports = Ports(server.port, server.grpc_port)
        self._folder = folder
        self.worker = find_worker(server)
        text = json.dumps({"instances": [_OTHERS.get(served, "what another user sends")]})
        self._probe = Probe(server.port, self.worker, folder / f"probe-{server.port}.txt", text)
        self._logged = len(server.output)
        self._wait_for_answers(time.monotonic())
        # Before any attack: what single cases keep may not add up.
        self._idle = self.memory

    def close(self) -> None:
        # One that an attack has taken down may not end by itself, and is killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.terminate()
        self._probe.close()

    def measure(self, seconds: float) -> Seen:
        """What others notice while nothing else happens."""
        start = time.monotonic()
        time.sleep(seconds)
        return self._probe.between(start, time.monotonic())

    @property
    def memory(self) -> float:
        """Bytes in memory of the worker and what it has started; 0 once it is gone."""
        try:
            return weigh(psutil.Process(self.worker))
        except psutil.NoSuchProcess:
            return 0.0

    def run(self, case: Case, rest: float = _REST) -> Row:
        """Carry the case out; then memory has at most `rest` seconds to come back."""
        attack = case.prepare()
        before = self.memory
        start = time.monotonic()
        statuses = attack(self.ports, case.patience)
        seconds = time.monotonic() - start
        lost = not self._wait_for_answers(time.monotonic())
        seen = self._probe.between(start, time.monotonic())
        after = self._wait_for_memory(rest)
        live = seen.liveness
        problems = [*self._judge(case, statuses)]
        if seen.peak > _PEAK_SHARE * self._idle + BUDGET:
            problems.append("too much memory")
        if lost:
            problems.append(f"no answer to others for {_LOST:.0f} s after it")
        if math.inf in live:
            problems.append("no answer to a probe")
        return Row(
            case.name, statuses, seconds, live, seen.latencies(OTHER), before, seen.peak, after, tuple(problems), lost
        )

    def rest(self) -> Row:
        """Wait for the memory that single cases have kept, after all of them."""
        start = time.monotonic()
        before = self.memory
        after = self._wait_for_memory(_LAST_REST)
        seen = self._probe.between(start, time.monotonic())
        problems = ("keeps memory",) if after > _most_after(self._idle) else ()
        seconds, other = time.monotonic() - start, seen.latencies(OTHER)
        return Row("after all cases", {}, seconds, seen.liveness, other, before, seen.peak, after, problems)

    def _judge(self, case: Case, statuses: Outcomes) -> Iterator[str]:
        if wrong := sorted(set(statuses) - case.allowed):
            yield f"answered {', '.join(wrong)}"
        if case.together is not None and statuses != case.together:
            yield f"must be answered {dict(case.together)}"
        output = self.server.output
        if "Traceback" in output[self._logged :]:
            yield "a traceback in the log"
        self._logged = len(output)
        if self.worker != find_worker(self.server):
            yield "the worker was replaced"

    def _wait_for_memory(self, rest: float) -> float:
        """What is in memory once it is as before any attack, or after so many seconds."""
        end = time.monotonic() + rest
        while (after := self.memory) > _most_after(self._idle) and time.monotonic() < end:
            time.sleep(0.2)
        return after

    def _wait_for_answers(self, moment: float) -> bool:
        while not self._probe.answered_since(moment):
            if time.monotonic() > moment + _LOST:
                return False
            time.sleep(0.2)
        return True


def _most_after(idle: float) -> float:
    return _AFTER_SHARE * idle + _SLACK


def find_worker(server: ServerProcess) -> int:
    """The process that serves; 0 if there is none."""
    for child in psutil.Process(server.pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "worker.service" in " ".join(child.cmdline()):
                return int(child.pid)
    return 0


def raise_file_limit() -> None:
    """Allow this process as many connections as the machine does; servers that it has started keep their own limit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
