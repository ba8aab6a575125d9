"""The pictures in docs/: all are there and shown, and small enough for git."""

from __future__ import annotations

import re

import pytest
from PIL import Image, ImageColor

from protocol.playground.page import FILES
from tests.playground.screenshots import FOLDER, PICTURES

MOST_BYTES = 150_000


def test_the_page_shows_each_picture() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == {*PICTURES}
    page = FOLDER.with_suffix(".md").read_text()
    assert [name for name in PICTURES if f"](playground/{name}.png)" not in page] == []


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small(name: str) -> None:
    assert (FOLDER / f"{name}.png").stat().st_size <= MOST_BYTES


@pytest.mark.parametrize(("name", "scheme"), [("error", "light"), ("dark", "dark")])
def test_pictures_have_the_colours_of_the_page(name: str, scheme: str) -> None:
    """Also those that are rare in them, such as that of an error's title."""
    shown = {"accent", "danger", "text"} if name == "error" else {"accent", "muted", "text"}
    colours = re.findall(r"--(\w+): light-dark\((#\w+), (#\w+)\);", (FILES / "style.css").read_text())
    expected = {
        variable: light if scheme == "light" else dark for variable, light, dark in colours if variable in shown
    }
    image = Image.open(FOLDER / f"{name}.png").convert("RGB")
    counts = image.getcolors(image.width * image.height)
    assert counts is not None
    found = {colour for _, colour in counts}
    assert {variable for variable, colour in expected.items() if ImageColor.getrgb(colour) in found} == shown
