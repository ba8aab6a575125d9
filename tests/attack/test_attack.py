"""The short form of `make attack`: what takes seconds, of one server, and some thousand fuzzed requests.

How long others wait is only printed: what else runs on the machine would decide about it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp

from tests.attack import fuzz_requests
from tests.attack.case import Case, ServerKind
from tests.attack.fuzz import fuzz, fuzz_server
from tests.attack.harness import BUDGET, Target
from tests.attack.seeds import SEEDS
from tests.attack.servers import start_server
from tests.attack.table import CASES
from tests.conftest import ModelFolder, Serve

pytestmark = pytest.mark.slow

QUICK = [case for case in CASES if case.quick and case.served is ServerKind.EMBEDDER]
# What would leave no model to ask, were it not refused, comes last.
QUICK.sort(key=lambda case: "load by" in case.name)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("attack")
    started = Target(ServerKind.EMBEDDER, start_server(ServerKind.EMBEDDER, folder), folder)
    yield started
    started.close()


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_nobody_else_is_hurt(target: Target, case: Case) -> None:
    row = target.run(case, rest=0)
    # Whether all memory comes back shows after a minute: `make attack` waits for it.
    assert not row.problems, (row.problems, row.statuses)
    assert row.after < row.before + BUDGET


def test_fuzzed_bytes_are_no_fault_of_the_server(target: Target) -> None:
    report = fuzz_server(target.server, "text_embedding", 300, 1)
    assert not report.failures, report.failures[:3]


@pytest.mark.parametrize("task", SEEDS)
async def test_fuzzed_requests_are_no_fault_of_the_server(task: str, tmp_path: Path) -> None:
    report = await fuzz([task], 300, 1, tmp_path)
    assert not report.failures, report.failures[:3]


@pytest.fixture(scope="module")
def application(serve: Serve, model_folder: ModelFolder) -> ASGIApp:
    served: ASGIApp = serve(model_dir=model_folder("bert", "sequence_classification")).client.app
    return served


def make_request(random: Random) -> fuzz_requests.FuzzedRequest:
    return fuzz_requests.make_request(random, SEEDS["sequence_classification"])


# The request is made outside of the coroutine, since hypothesis ends examples by exceptions that its task would keep.
@settings(max_examples=200, deadline=None)
@given(request=st.randoms(use_true_random=False).map(make_request))
async def test_hypothesis_finds_no_fault(application: ASGIApp, request: fuzz_requests.FuzzedRequest) -> None:
    """As above, but hypothesis makes a failing request as small as it can."""
    status, raised = await fuzz_requests.ask(application, request)
    assert not fuzz_requests.is_failure(status), (status, raised, request)
