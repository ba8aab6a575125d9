"""The playground for people who use keys, screen readers, dark rooms or small windows: every view, with an answer in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser import Visit, needs_browser
from tests.playground.conftest import VIEWS
from tests.playground.inspection import (
    CONTROLS,
    accessibility_nodes,
    faint_texts,
    moving,
    overflow,
    press_tab_through,
    tab_stops,
    unmarked_stops,
    unreachable_controls,
    unseen_bars,
)
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

# Roles besides those of controls that mean nothing without a name.
_NAMED = {"heading", "table", "image", "region", "radiogroup"}


@pytest.fixture(scope="module", params=VIEWS, ids="-".join)
def page(request: pytest.FixtureRequest, browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """A view with an answer in it."""
    model, view = request.param
    with Visit(browser, server.url, viewport={"width": 1280, "height": 800}) as visit:
        bench = Workbench(visit)
        bench.open(model, view)
        if model == "chat":
            bench.limit_tokens(8)
        bench.send()
        yield visit.page
        assert visit.faults == []


def test_screen_readers_get_names_and_a_structure(page: Page) -> None:
    expect(page.get_by_role("status").filter(has_text="Answer after")).to_have_count(1)
    nodes = accessibility_nodes(page)
    assert [node for node in nodes if node["role"] in CONTROLS | _NAMED and not node["name"].strip()] == []
    levels = [int(node["level"]) for node in nodes if node["role"] == "heading"]
    assert levels.count(1) == 1
    assert {node["role"] for node in nodes} >= {"banner", "main", "navigation", "complementary"}
    assert page.locator("html").get_attribute("lang") == "en"
    ids: list[str] = page.evaluate("() => [...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_the_key_tab_reaches_every_control_in_order(page: Page) -> None:
    expected = tab_stops(page)
    assert press_tab_through(page) == expected


def test_what_has_the_focus_is_outlined(page: Page) -> None:
    assert unmarked_stops(page) == []


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 640), (320, 640)])
def test_windows(width: int, height: int, page: Page) -> None:
    """The page never scrolls sideways, and no control is cut off."""
    page.set_viewport_size({"width": width, "height": height})
    for folded in page.locator("main details:not([open]) > summary").all():
        folded.click()
    assert overflow(page) == 0
    assert unreachable_controls(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(scheme: Literal["light", "dark"], page: Page) -> None:
    page.emulate_media(color_scheme=scheme)
    assert faint_texts(page) == []


def test_reduced_motion(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert moving(page) == []


def test_colours_that_the_user_forces(page: Page) -> None:
    """Bars, and which model is chosen, are seen without the page's own colours."""
    page.emulate_media(forced_colors="active")
    assert unseen_bars(page) == 0
    chosen = page.locator(".choice").filter(has=page.locator(":checked"))
    expect(chosen).to_have_css("outline-style", "solid")
    page.emulate_media(forced_colors="none")


def test_print(page: Page) -> None:
    """The answer and the code are printed, and no controls of the page around them."""
    page.emulate_media(media="print")
    expect(page.get_by_role("region", name="Answer", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    expect(page.locator("#models")).to_be_hidden()
    assert overflow(page) == 0
    page.emulate_media(media="screen")
