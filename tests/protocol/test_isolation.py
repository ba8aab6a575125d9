"""The answer to a text does not depend on the others' texts, whatever forward pass runs it, over REST and gRPC."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runners.encoder import forward_selection
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward
from tests.conftest import Dial, Serve
from tests.isolation import CASES, Case, Server, Wire
from tests.wire import WIRES

# `make test-architectures` asks for more of them, and others each time.
EXAMPLES = "ISOLATION_EXAMPLES"
PROPERTY = settings(
    max_examples=int(os.environ.get(EXAMPLES, 4)),
    deadline=None,
    derandomize=EXAMPLES not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
# What is served is truncated, or read in windows, above this.
LENGTH = 48
_CALLERS = 6
WORDS = ("good", "film", "É", "東京", "don't", "unbelievable", ".", "word", "station", "😀")
TEXT = st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)
WIRE = st.sampled_from(WIRES)


@pytest.fixture(scope="module", params=CASES, ids=str)
def server(
    request: pytest.FixtureRequest, serve: Serve, dial: Dial, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    case: Case = request.param
    candidates = forward_selection.make_candidates

    def force(*given: Any) -> list[Forward]:
        return [forward for forward in candidates(*given) if forward.mode is case.mode]

    with pytest.MonkeyPatch.context() as patch:
        if case.forced:
            patch.setattr(forward_selection, "make_candidates", force)
        folder = case.save(tmp_path_factory.mktemp("isolation"))
        # Nothing in the files of a masked language model says that it is for sparse vectors.
        task = {"task": case.task} if case.task == "sparse_embedding" else {}
        served = serve(model_dir=folder, dtype=case.dtype, max_length=LENGTH, **task)
    yield Server(case, served, dial(served))
    # The kernels of a model take 100 MB.
    served.runner.close()


def test_every_forward_is_tried() -> None:
    assert {case.mode for case in CASES} == {*BatchMode}
    assert {case.dtype for case in CASES if case.mode is BatchMode.PACKED} == {"float32", "bfloat16"}


@PROPERTY
@given(text=TEXT, others=st.lists(TEXT, min_size=1, max_size=6), place=st.integers(0, 6), wires=st.tuples(WIRE, WIRE))
def test_beside_the_texts_of_a_request(
    text: str, others: list[str], place: int, wires: tuple[Wire, Wire], server: Server
) -> None:
    """Others that are longer or shorter, come before or after, or are the text itself."""
    [alone] = server.ask(wires[0], [text])
    place = min(place, len(others))
    batch = [*others[:place], text, *others[place:], text]
    answers = server.ask(wires[1], batch)
    for position in (place, len(others) + 1):
        server.check_same(answers[position], alone, server.exact)


@PROPERTY
@given(text=TEXT, others=st.lists(st.lists(TEXT, min_size=1, max_size=3), min_size=2, max_size=_CALLERS), wire=WIRE)
def test_beside_the_texts_of_other_callers(text: str, others: list[list[str]], wire: Wire, server: Server) -> None:
    """Requests that come at one time, so that the batch is made of texts of several."""
    [alone] = server.ask(wire, [text])
    with ThreadPoolExecutor(_CALLERS + 2) as callers:
        asked = [callers.submit(server.ask, WIRES[index % len(WIRES)], texts) for index, texts in enumerate(others)]
        found = [callers.submit(server.ask, wire, [text]) for _ in range(2)]
        assert [len(answers.result()) for answers in asked] == [len(texts) for texts in others]
        for answers in found:
            server.check_same(answers.result()[0], alone, server.exact)


@PROPERTY
@given(
    lengths=st.lists(st.integers(1, LENGTH), min_size=2, max_size=8),
    own=st.integers(0, 7),
    seeds=st.tuples(st.integers(0, 99), st.integers(100, 199)),
    wire=WIRE,
)
def test_beside_others_of_the_same_lengths(
    lengths: list[int], own: int, seeds: tuple[int, int], wire: Wire, server: Server
) -> None:
    """In 16 bit too it must be bit-identical: whatever the others say, the same sums are taken."""
    own %= len(lengths)
    first, second = (server.make_texts(lengths, seed) for seed in seeds)
    second[own] = first[own]
    found, expected = (server.ask(wire, texts)[own] for texts in (first, second))
    server.check_same(found, expected, server.exact_beside_same_lengths)
