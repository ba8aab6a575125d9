"""Phases of load and of rest in turn, and what is measured at the end of each rest."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.soak.http_client import Connection
from tests.soak.http_requests import render
from tests.soak.process_tree import Holdings, Used, cpu_seconds, read_used, trim, weigh
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic

# Seconds of a rest: runners/hosting/idle_memory.py looks every 5 s whether an idle process has memory to return.
REST_SECONDS = 6.0
LOAD_SECONDS = 14.0
# Within which processes return what their heaps do not use.
_TRIM_SECONDS = 1.0
_SCRAPE_SECONDS = 30.0
# What must be 0 when nobody asks; scrapes are requests of `server`.
_AT_REST = re.compile(
    r'^((?:runtime_waiting_\w+|runtime_running_texts|runtime_requests_in_progress|vllm:num_requests_\w+)(?:\{(?![^}]*protocol="server")[^}]*\})?) (\S+)$',
    re.MULTILINE,
)


@dataclass(frozen=True)
class Phase:
    """What was measured in a phase of load, and in the rest after it.

    Attributes:
        seconds: since the start of the run.
        requests: since then.
        held: what the processes hold at the end of the rest, once their heaps have returned what they do not use.
        used: what their heaps use of it.
        untrimmed: bytes in memory before that.
        loaded: bytes in memory at the end of the load, with the garbage of some requests.
        latencies: p50 and p99 in seconds by kind, of this phase alone.
        series: lines of /metrics.
        unfinished: gauges that should be 0 at rest.
        server_cores, client_cores: how many cores the server's processes and this one used under load.
    """

    seconds: float
    requests: int
    held: Holdings
    used: Used
    untrimmed: int
    loaded: int
    latencies: dict[str, tuple[float, float]]
    series: int
    unfinished: tuple[str, ...]
    server_cores: float
    client_cores: float


class Run:
    """A run of such phases against the processes of a server."""

    def __init__(self, root: int, port: int, heaps: Path, traffic: Traffic, tally: Tally) -> None:
        """
        Args:
            root: the id of the process that has started all others of the server.
            port: where it is asked for its metrics.
            heaps: the folder in which its processes write what their heaps use.
        """
        self._root = root
        self._port = port
        self._heaps = heaps
        self._traffic = traffic
        self._tally = tally
        self._started = time.perf_counter()
        self.phases: list[Phase] = []

    async def go_on(
        self,
        seconds: float,
        show: Callable[[Phase], None],
        beside: Callable[[], Awaitable[None]],
        load: float = LOAD_SECONDS,
        rest: float = REST_SECONDS,
    ) -> None:
        """Run phases for so long; a phase that has begun is completed.

        Args:
            show: is called with each.
            beside: what is done once in each, beside the traffic; it leaves the server in the same state each time.
            load, rest: seconds of each phase.
        """
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self.phases.append(await self._run_phase(beside, load, rest))
            show(self.phases[-1])

    async def _run_phase(self, beside: Callable[[], Awaitable[None]], load: float, rest: float) -> Phase:
        marks, wall = self._tally.mark(), time.perf_counter()
        server, client = cpu_seconds(self._root), time.process_time()
        await asyncio.gather(self._traffic.run(load), beside())
        loaded = weigh(self._root).memory
        wall = time.perf_counter() - wall
        cores = (cpu_seconds(self._root) - server) / wall, (time.process_time() - client) / wall
        await asyncio.sleep(rest)
        untrimmed = weigh(self._root).memory
        trim(self._root)
        await asyncio.sleep(min(rest, _TRIM_SECONDS))
        held = weigh(self._root)
        used = read_used(self._heaps, held.processes)
        metrics = await self._scrape()
        return Phase(
            time.perf_counter() - self._started, self._tally.requests, held, used, untrimmed, loaded,
            self._tally.quantiles(marks), sum(not line.startswith("#") for line in metrics.splitlines()),
            find_unfinished(metrics), *cores,
        )  # fmt: skip

    async def _scrape(self) -> str:
        """What /metrics says, after memory was read, since a scrape takes some; nothing where there is no answer."""
        try:
            async with asyncio.timeout(_SCRAPE_SECONDS):
                connection = await Connection.open(self._port)
                try:
                    return (await connection.ask(render("GET", "/metrics"))).body.decode()
                finally:
                    connection.close()
        except (OSError, TimeoutError) as error:
            await self._tally.count_unanswered(f"no metrics at rest: {error!r}")
            return ""


def find_unfinished(metrics: str) -> tuple[str, ...]:
    """The gauges of requests that are not over, of what /metrics has said while nobody asked."""
    return tuple(f"{name} {value}" for name, value in _AT_REST.findall(metrics) if float(value) != 0)


def count_changes(phases: Sequence[Phase]) -> int:
    """How often the server's processes were others than in the rest before."""
    sets = [phase.held.processes for phase in phases]
    return sum(before != after for before, after in itertools.pairwise(sets))
