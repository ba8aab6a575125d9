"""Every model type that `transformers` registers for text generation, against `generate` of each sequence alone.

`make test-architectures` runs all of them, `make test` a tenth, `python -m tests.generator_families.sweep` what is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runners.generator.decoder import Batching
from tests.architectures.sweep import frozen_heap
from tests.generator_families import table
from tests.generator_families.comparison import Verdict, compare
from tests.generator_families.registry import Family, registered_families
from tests.generator_families.sweep import Outcomes, sweep
from tests.generator_families.tenth import TENTH

FAMILIES = registered_families()
BY_NAME = {str(family): family for family in FAMILIES}


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    return dict(sweep(FAMILIES))


@pytest.fixture(scope="module")
def cells() -> dict[str, str]:
    return table.read_cells(table.PAGE.read_text("utf-8"))


@pytest.fixture(scope="module")
def _frozen_heap() -> Iterator[None]:
    with frozen_heap():
        yield


@pytest.mark.architectures
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_an_answer_is_that_of_generate(family: Family, outcomes: Outcomes, cells: dict[str, str]) -> None:
    assert outcomes[family].verdict is not Verdict.WRONG, outcomes[family]
    assert table.render_cell(outcomes[family]) == cells[str(family)], "`make architectures-table` writes the page anew"


@pytest.mark.parametrize("name", TENTH)
@pytest.mark.usefixtures("_frozen_heap")
def test_a_tenth(name: str, cells: dict[str, str], tmp_path: Path) -> None:
    """The way to batch is that of the page, so that a slower one is noticed."""
    outcome = compare(BY_NAME[name], tmp_path)
    assert outcome.verdict is Verdict.RIGHT, outcome
    assert outcome.batching == cells[name]


def test_the_tenth_has_all_ways_to_batch(cells: dict[str, str]) -> None:
    assert len(TENTH) >= len(FAMILIES) / 10
    assert {cells[name] for name in TENTH} == {*Batching}


def test_the_page_has_every_family_and_its_counts(cells: dict[str, str]) -> None:
    assert cells.keys() == BY_NAME.keys()
    refused = [cell for cell in cells.values() if cell.startswith(Verdict.REFUSED)]
    refused_by_stock = [cell for cell in cells.values() if cell.startswith(Verdict.STOCK_REFUSES)]
    right = [cell for cell in cells.values() if cell in {*Batching}]
    assert (len(right), len(refused), len(refused_by_stock)) == (207, 10, 12)
    assert len(right) + len(refused) + len(refused_by_stock) == len(FAMILIES)
