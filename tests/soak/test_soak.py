"""What the soak finds: faults of small servers, and that the real one has none in a minute."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from random import Random

import pytest

from tests.servers import ROOT
from tests.soak.answers import Answers, read_json
from tests.soak.callers import HttpCaller
from tests.soak.faulty_server import Fault
from tests.soak.http_requests import HttpRequest, render
from tests.soak.phases import Phase, Run, find_unfinished
from tests.soak.report import judge_run
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic, Weighted
from tests.soak.verdict import Outcome, Verdict

pytestmark = pytest.mark.slow

# Seconds.
_RUN, _LOAD, _REST, _ANSWER = 4.0, 0.1, 0.02, 0.5


@contextmanager
def serve(fault: Fault) -> Iterator[tuple[int, int]]:
    """The process's id and the port of a server with a fault."""
    command = [sys.executable, "-m", "tests.soak.faulty_server", fault]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield process.pid, int(process.stdout.readline())
        finally:
            process.kill()


async def do_nothing() -> None:
    pass


async def drive(pid: int, port: int) -> tuple[list[Phase], Tally, Verdict]:
    tally, random = Tally(), Random(1)
    request = HttpRequest("score", render("GET", "/"), 1, answers=Answers(read_json))
    callers = [HttpCaller(port, tally, count(), _ANSWER) for _ in range(8)]

    def bind(caller: HttpCaller) -> Weighted:
        return Weighted(1, lambda: caller.ask(request))

    traffic = Traffic([[bind(caller)] for caller in callers], random)
    run = Run(pid, port, Path("/nowhere"), traffic, tally)
    try:
        await run.go_on(_RUN, lambda _: None, do_nothing, _LOAD, _REST)
    finally:
        await traffic.close()
        for caller in callers:
            caller.close()
    return run.phases, tally, judge_run(run.phases, tally)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (Fault.LEAK, "memory without load grows: +"),
        (Fault.THREADS, "the number of threads grows: "),
        (Fault.DESCRIPTORS, "the number of file descriptors grows: "),
        (Fault.SILENT, "requests without an answer"),
        (Fault.CUT, "requests without an answer"),
        (Fault.WRONG, "wrong answers"),
        (Fault.UNFINISHED, "rests in which requests were not over"),
    ],
)
async def test_a_fault_is_found(fault: Fault, found: str) -> None:
    with serve(fault) as (pid, port):
        phases, tally, verdict = await drive(pid, port)
    assert any(found in problem for problem in verdict.problems), verdict
    assert verdict.outcome is Outcome.FAILED
    assert phases[-1].requests == tally.requests > 100


async def test_no_fault_is_found_where_there_is_none() -> None:
    with serve(Fault.NONE) as (pid, port):
        phases, tally, verdict = await drive(pid, port)
    assert not verdict.problems
    assert (tally.unanswered, tally.wrong, tally.left) == (0, 0, 0)
    assert {phase.held.threads for phase in phases} == {1}
    assert phases[-1].latencies.keys() == {"all", "score"}


async def test_a_server_that_ends_leaves_requests_without_an_answer() -> None:
    tally = Tally()
    with serve(Fault.NONE) as (_, port):
        caller = HttpCaller(port, tally, count(), _ANSWER)
        request = HttpRequest("score", render("GET", "/"), 1)
        await caller.ask(request)
    await caller.ask(request)
    assert (tally.answered, tally.unanswered) == (1, 1)
    assert "no answer" in tally.examples[0]


@pytest.mark.parametrize(
    ("metrics", "found"),
    [
        ('runtime_waiting_texts{model_name="a"} 0.0\nruntime_waiting_texts{model_name="b"} 2.0\n', ('runtime_waiting_texts{model_name="b"} 2.0',)),
        ('runtime_requests_in_progress{protocol="server"} 1.0\nruntime_requests_in_progress{protocol="grpc"} 1.0\n', ('runtime_requests_in_progress{protocol="grpc"} 1.0',)),
        ('# HELP runtime_running_texts Texts\nruntime_texts_total{model_name="a"} 7.0\n', ()),
        ('vllm:num_requests_running{model_name="a"} 1.0\n', ('vllm:num_requests_running{model_name="a"} 1.0',)),
    ],
)  # fmt: skip
def test_what_is_not_over_at_rest(metrics: str, found: tuple[str, ...]) -> None:
    assert find_unfinished(metrics) == found


def test_the_real_server(tmp_path: Path) -> None:
    """Half a minute is too short to decide about memory, but not about the rest."""
    command = [sys.executable, "-m", "tests.soak", "--minutes", "0.5", "--workers", "2", "--out", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["problems"] == [], run.stdout
    assert (run.returncode, results["outcome"]) == (Outcome.INCONCLUSIVE.value, "inconclusive")
    assert "too short to decide 1 %" in run.stdout
    asked = {kind.partition(" ")[0] for kind in results["latency_seconds"]}
    assert {"v1", "v2", "openai", "tei", "huggingface", "grpc", "wrong:", "health", "metrics", "repository"} <= asked
    assert results["requests"]["left"] > 0
    assert all(phase["used"]["heap_bytes"] > 100 * 2**20 for phase in results["phases"])
    assert (tmp_path / "soak.svg").read_text().count("under load") == 1
