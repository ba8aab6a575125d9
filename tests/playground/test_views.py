"""What a user sees of each task's answer, against the server's own answer to the same request."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, expect

from tests.browser import needs_browser
from tests.playground.conftest import MODELS, VIEWS, OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

Answer = Callable[..., Workbench]


def test_every_view_is_in_the_tests(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open()
    found = []
    for model in MODELS:
        bench.choose(model)
        found += [(model, view) for view in bench.views()]
    assert sorted(found) == sorted(VIEWS)


@pytest.fixture(params=["mouse", "keys"])
def answer(request: pytest.FixtureRequest, workbenches: OpenWorkbench, server: ServerProcess) -> Answer:
    """A page that shows an answer: `answer("sentiment", "", Text="I love this.")`, once by mouse and once by keys alone."""

    def ask(model: str, view: str = "", **texts: str) -> Workbench:
        bench = workbenches(server)
        bench.open()
        by_keys = request.param == "keys"
        bench.choose_by_keys(model) if by_keys else bench.choose(model)
        for label, text in texts.items():
            if by_keys:
                bench.type_by_keys(bench.field(label), text)
            else:
                bench.field(label).fill(text)
        if by_keys:
            bench.page.keyboard.press("Control+Enter")
            bench.wait()
        else:
            bench.send()
        expect(bench.fact("Latency")).to_contain_text("ms")
        expect(bench.fact("Input")).to_contain_text("tokens")
        return bench

    return ask


def bars(table: Locator) -> list[tuple[str, str, float]]:
    """The label of each bar, its score as it is written, and the share of the track that is filled."""
    shown: list[tuple[str, str, float]] = []
    for row in table.locator("tbody tr").all():
        track, bar = row.locator(".track").bounding_box(), row.locator(".bar").bounding_box()
        assert track is not None
        assert bar is not None
        inner = row.locator(".track").evaluate(
            "element => element.clientWidth - parseFloat(getComputedStyle(element).paddingLeft)"
            " - parseFloat(getComputedStyle(element).paddingRight)"
        )
        shown.append((row.locator("th").inner_text(), row.locator(".score").inner_text(), bar["width"] / inner))
    return shown


@pytest.mark.parametrize("text", ["I love this.", "What a waste of time.", "<b>Fine</b> &amp; 😀"])
def test_classification_is_bars(text: str, answer: Answer) -> None:
    bench = answer("sentiment", Text=text)
    assert bench.exchanges[-1].body == {"inputs": text}
    [scores] = bench.repeat()
    shown = bars(bench.answer)
    assert [(label, score) for label, score, _ in shown] == [(each["label"], f"{each['score']:.4f}") for each in scores]
    # A bar is never thinner than its round ends.
    assert [share for *_, share in shown] == pytest.approx([each["score"] for each in scores], abs=0.05)
