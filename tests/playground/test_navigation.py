"""Where the focus, the address and the window are after what a user does: nothing moves that the user does not move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Route, expect

from tests.browser import needs_browser
from tests.playground.answers import answer_in_turn
from tests.playground.conftest import OpenWorkbench
from tests.playground.workbench import Workbench, press
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]


def button(bench: Workbench, name: str) -> Locator:
    return bench.page.get_by_role("button", name=name, exact=True)


def press_arrow_in_views(bench: Workbench) -> Locator:
    views = bench.page.get_by_role("group", name="What to do").get_by_role("radio")
    views.first.focus()
    bench.page.keyboard.press("ArrowRight")
    return views.nth(1)


def press_refresh(bench: Workbench) -> Locator:
    button(bench, "Refresh").focus()
    with bench.page.expect_response("**/v1/models"):
        bench.page.keyboard.press("Enter")
    return button(bench, "Refresh")


def press_stop(bench: Workbench) -> Locator:
    bench.page.route("**/v1/embeddings", lambda _: None)
    bench.send_button.click()
    button(bench, "Stop").focus()
    bench.page.keyboard.press("Enter")
    return bench.send_button


def press_try_again(bench: Workbench) -> Locator:
    answer_in_turn(bench.page, "v1/embeddings", {"status": 503})
    bench.send()
    button(bench, "Try again").focus()
    bench.page.keyboard.press("Enter")
    bench.wait()
    bench.visit.expect_fault("status of 503")
    return bench.send_button


@pytest.mark.parametrize("act", [press_arrow_in_views, press_refresh, press_stop, press_try_again])
def test_the_focus_stays(
    act: Callable[[Workbench], Locator], workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """Each acts by keys, and returns what has the focus then."""
    bench = workbenches(server)
    bench.open("embed")
    expect(act(bench)).to_be_focused()


def test_the_skip_link_keeps_the_address(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("qa")
    bench.page.keyboard.press("Tab")
    bench.page.keyboard.press("Enter")
    expect(bench.page.get_by_role("main")).to_be_focused()
    assert bench.page.url.endswith("#model=qa")


def test_back_goes_to_the_model_before(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    bench.choose("embed")
    press(bench.page.get_by_role("radio", name="Sort documents"))
    expect(bench.field("Query")).to_be_visible()
    bench.page.go_back()
    expect(bench.field("text 1")).to_be_visible()
    expect(bench.page.get_by_role("radio", name="Compare texts")).to_be_checked()
    bench.page.go_back()
    expect(bench.model("sentiment")).to_be_checked()
    expect(bench.page.locator("h1")).to_have_text("sentiment")
    bench.page.go_forward()
    expect(bench.page.locator("h1")).to_have_text("embed")


def test_the_address_is_changed_by_hand(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    bench.page.evaluate("() => { location.hash = '#model=nli&view=classification'; }")
    expect(bench.page.locator("h1")).to_have_text("nli")
    expect(bench.field("Second text")).to_be_visible()


def test_the_window_stays_while_a_model_loads(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The page asks again and again; neither the window nor what has the focus moves."""
    bench = workbenches(server, viewport={"width": 1000, "height": 300})
    index = [{"name": "qa", "version": "1", "state": "LOADING", "reason": ""}]
    asked = answer_in_turn(bench.page, "v2/repository/index", {"json": index})
    bench.open("sentiment")
    bench.page.evaluate("() => scrollTo(0, 200)")
    bench.model("sentiment").evaluate("(radio) => radio.focus({ preventScroll: true })")
    before = bench.page.evaluate("() => scrollY")
    assert before > 0
    with bench.page.expect_response("**/v2/repository/index"):
        pass
    assert len(asked) > 1
    assert bench.page.evaluate("() => scrollY") == before
    expect(bench.model("sentiment")).to_be_focused()


def test_a_newer_list_wins(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The first request for the list is answered last, and asks for a key."""
    bench = workbenches(server)
    held: list[Route] = []
    bench.page.route("**/v1/models", lambda route: held.append(route), times=1)
    bench.page.goto("/playground")
    expect(bench.page.get_by_text("Loading …")).to_be_visible()
    expect(bench.page.locator("#models")).to_have_attribute("aria-busy", "true")
    button(bench, "Refresh").click()
    expect(bench.page.locator("h1")).to_have_text("sentiment")
    held[0].fulfill(status=401, json={"error": "no key"})
    expect(bench.page.locator("#models")).to_have_attribute("aria-busy", "false")
    expect(bench.page.locator("h1")).to_have_text("sentiment")


def test_a_problem_in_folded_options_is_shown(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("qa")
    summary = bench.page.locator("main summary", has_text="Options")
    number = bench.field("Number of answers")
    summary.click()
    number.fill("0")
    summary.click()
    expect(number).to_be_hidden()
    bench.send_button.click()
    expect(number).to_be_focused()
    expect(number).to_have_attribute("aria-invalid", "true")
    expect(number).to_have_accessible_description(bench.alert.inner_text())
    number.fill("1")
    bench.send()
    expect(number).not_to_have_attribute("aria-invalid", "true")
    expect(bench.alert).to_have_count(0)


@pytest.mark.parametrize("end", ["Enter", "Tab"])
def test_a_changed_key(end: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The list is fetched once, and the focus goes where the user sends it."""
    bench = workbenches(server)
    bench.open("sentiment")
    key = bench.key_field()
    answers = answer_in_turn(bench.page, "v1/models", {"status": 401, "json": {"error": "wrong key"}})
    key.fill("wrong")
    bench.page.keyboard.press(end)
    expect(bench.alert).to_contain_text("wrong key")
    assert len(answers) == 1
    if end == "Enter":
        expect(key).to_be_focused()
    else:
        expect(bench.page.get_by_label("Keep it until this tab is closed")).to_be_focused()
    bench.visit.expect_fault("status of 401")


@pytest.mark.parametrize(("width", "top"), [(360, 420), (1280, 300)])
def test_the_first_field_is_in_the_window_at_once(
    width: int, top: int, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server, viewport={"width": width, "height": 640})
    bench.open("nli")
    box = bench.field("Text").bounding_box()
    assert box is not None
    assert box["y"] < top


def test_a_narrow_window_has_a_menu_of_models(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, viewport={"width": 360, "height": 640})
    bench.open("sentiment")
    bench.page.get_by_role("combobox", name="Models").select_option("embed")
    expect(bench.page.locator("h1")).to_have_text("embed")
    bench.send()
    expect(bench.answer.get_by_role("heading", name="Answer")).to_be_in_viewport()
