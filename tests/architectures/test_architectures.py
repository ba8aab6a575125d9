"""Every architecture that `transformers` registers for a task of this server, against the stock model.

`make test-architectures` runs all of it, `make test` a tenth, and `python -m tests.architectures.sweep` what is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.encoder.batch_mode import BatchMode
from tests.architectures import table
from tests.architectures.comparison import DTYPES, Outcome, Verdict, compare
from tests.architectures.refusals import stock_refusal
from tests.architectures.registry import Pair, registered_pairs, tokenizer_kinds
from tests.architectures.sweep import Outcomes, frozen_heap, sweep
from tests.architectures.table import read_cells
from tests.architectures.tenth import TENTH

PAIRS = registered_pairs()
# Of what the stock model runs from text alone.
LEAST_SHARE = 0.97


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return sweep(PAIRS)


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], str]:
    return {(model_type, task): cell for (model_type, task), cell in read_cells(table.PAGE.read_text("utf-8")).items()}


@pytest.fixture(scope="module")
def _frozen_heap() -> Iterator[None]:
    with frozen_heap():
        yield


@pytest.mark.architectures
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_an_answer_is_that_of_the_stock_model(pair: Pair, outcomes: Outcomes) -> None:
    for dtype in DTYPES:
        # What is refused is counted below, and has its reason on the page.
        check(pair, dtype, outcomes[pair][dtype], allowed={Verdict.RIGHT, Verdict.REFUSED})


def check(pair: Pair, dtype: str, outcome: Outcome, allowed: set[Verdict]) -> None:
    """The stock model refuses what is known that it refuses, for that reason; all else is as allowed."""
    if (refusal := stock_refusal(pair, dtype)) is None:
        assert outcome.verdict in allowed, f"{dtype}: {outcome}"
    else:
        assert outcome.verdict is Verdict.STOCK_REFUSES, f"{dtype}: {refusal}, it was said; it is {outcome}"
        assert refusal.message in outcome.reason, dtype


@pytest.mark.architectures
@pytest.mark.parametrize("dtype", DTYPES)
def test_all_are_compared_and_nearly_all_are_right(dtype: str, outcomes: Outcomes) -> None:
    assert outcomes.keys() == set(PAIRS)
    counts = table.count(outcomes, dtype)
    refused_by_stock = sum(stock_refusal(pair, dtype) is not None for pair in PAIRS)
    assert counts[Verdict.WRONG] == 0
    assert counts[Verdict.RIGHT] + counts[Verdict.REFUSED] + refused_by_stock == len(PAIRS)
    assert counts[Verdict.RIGHT] >= LEAST_SHARE * (len(PAIRS) - refused_by_stock), counts


@pytest.mark.architectures
def test_the_page_says_what_was_measured(outcomes: Outcomes) -> None:
    written = table.PAGE.read_text(encoding="utf-8")
    assert written.endswith(table.render(outcomes)), "`make architectures-table` writes the page anew"


@pytest.mark.parametrize("pair", TENTH, ids=str)
@pytest.mark.usefixtures("_frozen_heap")
def test_a_tenth(pair: Pair, cells: dict[tuple[str, str], str], tmp_path: Path) -> None:
    """In float32 and a 16-bit dtype; the mode is that of the page, so that a slower one is noticed."""
    half = TENTH[pair]
    for dtype, outcome in compare(pair, tmp_path, ("float32", half)).items():
        check(pair, dtype, outcome, allowed={Verdict.RIGHT})
        if dtype == "float32" and pair.task in table.TASKS:
            assert outcome.mode == mode_of(cells[pair.model_type, pair.task])


def mode_of(cell: str) -> str:
    """How batches are computed in float32."""
    return cell.partition(";")[0]


def test_the_tenth_is_a_tenth_of_all_kinds(cells: dict[tuple[str, str], str]) -> None:
    assert set(TENTH) <= set(PAIRS)
    assert len(TENTH) >= len(PAIRS) / 10
    assert {pair.tokenizer_kind for pair in TENTH} == tokenizer_kinds(PAIRS)
    assert {pair.task for pair in TENTH} == {pair.task for pair in PAIRS}
    modes = {mode_of(cells[pair.model_type, pair.task]) for pair in TENTH if pair.task in table.TASKS}
    assert modes == {mode_of(cell) for cell in cells.values()} & {*BatchMode}


def test_the_page_has_every_registered_pair_and_no_other(cells: dict[tuple[str, str], str]) -> None:
    assert cells.keys() == {(pair.model_type, pair.task) for pair in PAIRS if pair.task in table.TASKS}
