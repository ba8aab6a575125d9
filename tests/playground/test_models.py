"""The list of models: while models load, after errors, with several versions and names, and where it is long."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser import needs_browser
from tests.playground.conftest import OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

LIST, INDEX = "v1/models", "v2/repository/index"
UNREADY = {"name": "embed", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
LOADING = {"name": "embed", "version": "2", "state": "LOADING", "reason": ""}


@dataclass
class Answers:
    """What the browser gets by the paths of the list and the index, until a test changes it; the server's where None."""

    by_path: dict[str, dict[str, Any] | None] = field(default_factory=dict)

    def give(self, page: Page) -> None:
        for path in (LIST, INDEX):
            page.route(f"**/{path}", partial(self._answer, path))

    def _answer(self, path: str, route: Route) -> None:
        answer = self.by_path.get(path)
        route.continue_() if answer is None else route.fulfill(**answer)


def cards(*models: dict[str, Any]) -> dict[str, Any]:
    return {"json": {"data": [*models]}}


@pytest.fixture
def bench(workbenches: OpenWorkbench, server: ServerProcess) -> Workbench:
    return workbenches(server)


@pytest.fixture
def answers(bench: Workbench) -> Answers:
    """The only model is being loaded."""
    answers = Answers({LIST: cards({"id": "embed"}), INDEX: {"json": [UNREADY, LOADING]}})
    answers.give(bench.page)
    return answers


def facts(bench: Workbench) -> str:
    return bench.page.locator("main .facts").inner_text()


@pytest.mark.parametrize("path", [LIST, INDEX])
def test_a_page_whose_poll_fails_asks_again(path: str, bench: Workbench, answers: Answers) -> None:
    """And it knows still that the model is being loaded."""
    bench.open()
    assert facts(bench) == "Loading …"
    answers.by_path[path] = {"status": 503, "json": {"error": "Busy."}}
    for _ in range(2):
        with bench.page.expect_response(f"**/{path}"):
            pass
    expect(bench.page.locator("#list-problem")).to_have_text("Not refreshed: Busy." if path == LIST else "")
    assert facts(bench) == "Loading …"
    answers.by_path = {}
    expect(bench.page.locator("main .facts")).to_contain_text("Text embedding")
    expect(bench.page.locator("#list-problem")).to_have_text("")
    bench.visit.expect_fault("status of 503")


def test_the_address_keeps_the_view_of_a_model_that_loads(bench: Workbench, answers: Answers) -> None:
    bench.open("embed", "rerank")
    assert facts(bench) == "Loading …"
    assert bench.page.url.endswith("#model=embed&view=rerank")
    answers.by_path = {}
    expect(bench.page.get_by_role("radio", name="Sort documents")).to_be_checked()
    assert bench.page.url.endswith("#model=embed&view=rerank")


def ready(version: str) -> dict[str, str]:
    return {"name": "m", "version": version, "state": "READY", "reason": ""}


@pytest.mark.parametrize(
    ("card", "index", "expected"),
    [
        ({"id": "m"}, [], "Not ready"),
        ({"id": "m"}, [{**UNREADY, "name": "m"}], "Not ready: unloaded"),
        ({"id": "m"}, [{**UNREADY, "name": "m"}, {**LOADING, "name": "m"}], "Loading …"),
        ({"id": "m", "task": "text_ranking"}, [ready("1")], "Text ranking"),
        ({"id": "m", "task": "text_ranking", "max_model_len": 8}, [ready("1")], "Text ranking · at most 8 tokens"),
        (
            {"id": "m", "task": "text_ranking"},
            [ready("1"), ready("2"), {**UNREADY, "name": "m", "version": "3"}],
            "Text ranking · versions 1, 2 ready, the highest answers",
        ),
        (
            {"id": "m", "task": "text_ranking"},
            [{**UNREADY, "name": "m"}, ready("2")],
            "Text ranking · version 2 answers",
        ),
        ({"id": "m", "task": "text_ranking", "root": "m"}, [ready("1")], "Text ranking"),
        ({"id": "m", "task": "text_ranking", "root": "base"}, [ready("1")], "Text ranking · another name of base"),
    ],
)
def test_what_is_said_of_a_model(
    card: dict[str, Any], index: list[Any], expected: str, bench: Workbench, answers: Answers
) -> None:
    answers.by_path = {LIST: cards(card), INDEX: {"json": index}}
    bench.open()
    assert facts(bench) == expected


def test_nothing_is_left_of_a_list_that_a_wrong_key_cannot_get(bench: Workbench, answers: Answers) -> None:
    bench.open()
    expect(bench.page.locator("#server")).to_contain_text("1 model")
    assert bench.page.title() == "embed · Playground"
    answers.by_path[LIST] = {"status": 401, "json": {"error": "wrong key"}}
    bench.key_field().fill("wrong")
    bench.page.keyboard.press("Enter")
    expect(bench.alert).to_contain_text("wrong key")
    expect(bench.page.locator("#server")).to_have_text("")
    assert bench.page.title() == "Playground"
    bench.visit.expect_fault("status of 401")


@pytest.mark.parametrize("data", [None, 1, [None], [{}], [{"id": 1}]])
def test_lists_of_an_unknown_format(data: Any, bench: Workbench, answers: Answers) -> None:
    answers.by_path[LIST] = {"json": {"data": data}}
    bench.open()
    expect(bench.alert).to_contain_text("No list of models")
    expect(bench.alert).to_contain_text("The server's list of models has an unknown format.")
    expect(bench.page.get_by_text("Loading …")).to_have_count(0)


@pytest.mark.parametrize("fault", ["the page's", "an old browser's"])
def test_a_fault_of_the_page_is_shown(fault: str, bench: Workbench, answers: Answers) -> None:
    """And it reaches the console."""
    if fault == "the page's":
        answers.by_path[LIST] = cards({"id": "embed", "task": "text_embedding", "capabilities": 1})
    else:
        bench.page.add_init_script("delete AbortSignal.any")
    bench.open()
    expect(bench.alert).to_contain_text("This page cannot show the list.")
    expect(bench.alert).to_contain_text("a browser of 2024 or later")
    expect(bench.page.get_by_text("Loading …")).to_have_count(0)
    bench.visit.expect_fault("is not a function")


def faded_edges(bench: Workbench) -> tuple[int, int]:
    """Over how many pixels the list of models fades at its upper and at its lower edge."""
    bench.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    mask = bench.page.locator("#choices").evaluate("(list) => getComputedStyle(list).maskImage")
    found = re.search(r"rgb\(0, 0, 0\) ([\d.]+)px, rgb\(0, 0, 0\) (?:calc\(100% - ([\d.]+)px\)|100%)", mask)
    assert found is not None, mask
    return round(float(found[1])), round(float(found[2] or 0))


def test_the_list_fades_where_it_goes_on(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, viewport={"width": 1280, "height": 500})
    bench.open()
    for position, expected in [("0", (0, 28)), ("100", (28, 28)), ("list.scrollHeight", (28, 0))]:
        bench.page.locator("#choices").evaluate(f"(list) => {{ list.scrollTop = {position}; }}")
        assert faded_edges(bench) == expected
    bench.page.set_viewport_size({"width": 1280, "height": 2000})
    assert faded_edges(bench) == (0, 0)


def test_the_key_is_folded_until_the_server_asks_for_one(bench: Workbench, answers: Answers) -> None:
    bench.open()
    key = bench.page.get_by_label("Key, if the server asks for one")
    expect(key).to_be_hidden()
    answers.by_path[LIST] = {"status": 401, "json": {"error": "no key"}}
    bench.page.get_by_role("button", name="Refresh").click()
    expect(key).to_be_visible()
    bench.visit.expect_fault("status of 401")
