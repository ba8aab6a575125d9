"""The pictures in docs/: all are there and shown, and small enough for git."""

from __future__ import annotations

import pytest

from tests.playground.screenshots import FOLDER, PICTURES

MOST_BYTES = 150_000


def test_the_page_shows_each_picture() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*PICTURES}
    page = FOLDER.with_suffix(".md").read_text()
    assert [name for name in PICTURES if f"](playground/{name}.png)" not in page] == []


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small(name: str) -> None:
    assert (FOLDER / f"{name}.png").stat().st_size <= MOST_BYTES
