"""The playground for people who use keys, screen readers, dark rooms or small windows: every view, with an answer in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.browser import Visit, needs_browser
from tests.playground.conftest import VIEWS, OpenWorkbench
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


WINDOW: ViewportSize = {"width": 1280, "height": 800}


@pytest.fixture(scope="module", params=VIEWS, ids="-".join)
def shared_page(request: pytest.FixtureRequest, browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """A view with an answer in it."""
    model, view = request.param
    with Visit(browser, server.url) as visit:
        bench = Workbench(visit)
        bench.open(model, view)
        if model == "chat":
            bench.limit_tokens(8)
        bench.send()
        yield visit.page
        assert visit.faults == []


@pytest.fixture
def page(shared_page: Page) -> Page:
    """The same for each test: in a wide window, as screens show it, from its start."""
    shared_page.set_viewport_size(WINDOW)
    shared_page.emulate_media(media="null", color_scheme="null", reduced_motion="null", forced_colors="null")
    shared_page.evaluate("() => scrollTo(0, 0)")
    return shared_page


def unfold(page: Page) -> None:
    """Show what is folded."""
    page.evaluate("() => document.querySelectorAll('details').forEach((each) => { each.open = true; })")


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
    unfold(page)
    assert overflow(page) == 0
    assert unreachable_controls(page) == []


SCHEMES: list[Literal["light", "dark"]] = ["light", "dark"]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", [1280, 360])
def test_contrast(width: int, scheme: Literal["light", "dark"], page: Page) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    unfold(page)
    assert page.locator(".choice").first.is_visible() == (width == 1280)
    assert faint_texts(page) == []


def show_error(bench: Workbench) -> str:
    bench.page.route("**/models/sentiment", lambda route: route.fulfill(status=503, json={"error": "Busy."}))
    bench.open("sentiment")
    bench.send()
    bench.visit.expect_fault("status of 503")
    return ".error h3"


def show_problem(bench: Workbench) -> str:
    bench.open("sentiment")
    bench.field("Text").fill("")
    bench.send_button.click()
    return ".problem"


def show_loading_model(bench: Workbench) -> str:
    index = [{"name": "embed", "version": "1", "state": "LOADING", "reason": ""}]
    bench.page.route("**/v1/models", lambda route: route.fulfill(json={"data": [{"id": "embed"}, {"id": "other"}]}))
    bench.page.route("**/v2/repository/index", lambda route: route.fulfill(json=index))
    bench.open("other")
    return ".choice.waiting:not(:has(:checked)) .name"


def show_no_list(bench: Workbench) -> str:
    bench.page.route("**/v1/models", lambda route: route.fulfill(status=401, json={"error": "no key"}))
    bench.open()
    bench.visit.expect_fault("status of 401")
    return ".error h1"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("show", [show_error, show_problem, show_loading_model, show_no_list])
def test_contrast_of_what_is_no_answer(
    show: Callable[[Workbench], str], scheme: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """Each shows something, and returns its selector."""
    bench = workbenches(server, color_scheme=scheme, viewport=WINDOW)
    expect(bench.page.locator(show(bench)).first).to_be_visible()
    assert faint_texts(bench.page) == []


def test_reduced_motion(page: Page) -> None:
    page.emulate_media(reduced_motion="reduce")
    assert moving(page) == []


def test_colours_that_the_user_forces(page: Page) -> None:
    """Bars, and which model is chosen, are seen without the page's own colours."""
    page.emulate_media(forced_colors="active")
    assert unseen_bars(page) == 0
    chosen = page.locator(".choice").filter(has=page.locator(":checked"))
    expect(chosen).to_have_css("outline-style", "solid")


def test_print(page: Page) -> None:
    """The answer and the whole code are printed, and no controls of the page around them."""
    page.set_viewport_size({"width": 500, "height": 800})
    page.emulate_media(media="print")
    expect(page.locator("main .answer")).to_be_visible()
    code = page.locator("main pre")
    expect(code).to_be_visible()
    assert code.evaluate("(code) => code.scrollHeight <= code.clientHeight && code.scrollWidth <= code.clientWidth")
    expect(page.get_by_role("button", name="Copy")).to_be_hidden()
    expect(page.locator("#models")).to_be_hidden()
    assert overflow(page) == 0
