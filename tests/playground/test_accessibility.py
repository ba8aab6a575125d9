"""The playground for people who use keys, screen readers, dark rooms or small windows: every view, with an answer in it."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.playground.conftest import VIEWS, OpenWorkbench
from tests.playground.inspection import (
    accessibility_nodes,
    faint_texts,
    nameless_controls,
    overflow,
    press_tab_through,
    tab_stops,
    unreachable_controls,
)
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

# Roles besides those of controls that mean nothing without a name.
_NAMED = {"heading", "table", "image", "region", "radiogroup"}
WINDOWS = [(1280, 800), (360, 640), (320, 640)]


@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_screen_readers_and_keys(model: str, view: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, viewport={"width": 1280, "height": 800})
    bench.open(model, view)
    bench.send()
    expect(bench.page.get_by_role("status").filter(has_text="Answer after")).to_have_count(1)
    assert nameless_controls(bench.page) == []

    nodes = accessibility_nodes(bench.page)
    levels = [int(node["level"]) for node in nodes if node["role"] == "heading"]
    assert levels.count(1) == 1
    assert [node for node in nodes if node["role"] in _NAMED and not node["name"]] == []
    landmarks = {node["role"] for node in nodes} & {"banner", "main", "navigation", "complementary"}
    assert landmarks >= {"banner", "main", "navigation"}
    assert bench.page.locator("html").get_attribute("lang") == "en"
    assert bench.page.evaluate("() => [...document.querySelectorAll('[id]')].map(each => each.id).sort()") == sorted(
        set(bench.page.evaluate("() => [...document.querySelectorAll('[id]')].map(each => each.id)"))
    )

    expected = tab_stops(bench.page)
    assert press_tab_through(bench.page) == expected


@pytest.mark.parametrize(("width", "height"), WINDOWS)
@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_windows(
    model: str, view: str, width: int, height: int, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server, viewport={"width": width, "height": height})
    bench.open(model, view)
    bench.send()
    for folded in bench.page.locator("main details:not([open]) > summary").all():
        folded.click()
    assert overflow(bench.page) == 0
    assert unreachable_controls(bench.page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_contrast(model: str, view: str, scheme: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, color_scheme=scheme)
    bench.open(model, view)
    bench.send()
    assert faint_texts(bench.page) == []
