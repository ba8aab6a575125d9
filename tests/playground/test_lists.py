"""Lists that users edit: the labels of a zero-shot classification, and the documents that are sorted."""

from __future__ import annotations

import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.playground.conftest import OpenWorkbench
from tests.playground.workbench import Workbench, set_value
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]


@pytest.fixture
def labels(workbenches: OpenWorkbench, server: ServerProcess) -> Workbench:
    """The view of labels, with one label; the focus is where labels are added."""
    bench = workbenches(server)
    bench.open("nli", "zero-shot")
    for name in ("politics", "cooking"):
        bench.page.get_by_role("button", name=f"Remove {name}").click()
    bench.field("Add a label").focus()
    return bench


@pytest.mark.parametrize(
    ("typed", "key", "sent"),
    [
        ("praise", "Enter", ["technology", "praise"]),
        ("a,a,b", "Enter", ["technology", "a", "b"]),
        (" a , , b,", "Enter", ["technology", "a", "b"]),
        ("technology", "Enter", ["technology"]),
        # What cannot be seen is no label.
        ("\u200b", "Enter", ["technology"]),
        ("\u200b,\u2066,\u3164", "Enter", ["technology"]),
        # Sent without being added.
        ("x, y", "", ["technology", "x", "y"]),
        ("x, x, technology", "", ["technology", "x"]),
        # Half a character, which no request can hold.
        ("a\ud800", "Enter", ["technology", "a\ufffd"]),
    ],
)
def test_labels(typed: str, key: str, sent: list[str], labels: Workbench) -> None:
    set_value(labels.field("Add a label"), typed)
    if key:
        labels.page.keyboard.press(key)
        assert labels.page.locator(".chips li span").all_inner_texts() == sent
    labels.send()
    assert labels.exchanges[-1].body["parameters"]["candidate_labels"] == sent


def test_a_held_backspace_deletes_what_is_typed_and_no_label(labels: Workbench) -> None:
    labels.page.keyboard.insert_text("ab")
    for _ in range(6):
        labels.page.keyboard.down("Backspace")
    labels.page.keyboard.up("Backspace")
    expect(labels.field("Add a label")).to_have_value("")
    expect(labels.page.locator(".chips li")).to_have_count(1)
    labels.page.keyboard.press("Backspace")
    expect(labels.page.locator(".chips li")).to_have_count(0)
    labels.send_button.click()
    expect(labels.alert).to_have_text("Add at least one label.")


@pytest.mark.parametrize(
    ("model", "view", "noun", "count"), [("rerank", "rerank", "document", 3), ("embed", "similarity", "text", 4)]
)
def test_an_empty_text_of_a_list_is_not_sent(
    model: str, view: str, noun: str, count: int, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """Else the numbers of those after it would not be those of the answer."""
    bench = workbenches(server)
    bench.open(model, view)
    bench.field(f"{noun} 2").fill(" ")
    bench.send_button.click()
    expect(bench.alert).to_have_text(f"Fill or remove {noun} 2: it is empty.")
    expect(bench.field(f"{noun} 2")).to_be_focused()
    bench.page.get_by_role("button", name=f"Remove {noun} 2").click()
    bench.send()
    body = bench.exchanges[-1].body
    assert len(body.get("documents") or body["input"]) == count - 1
    for _ in range(count - 1):
        bench.page.get_by_role("button", name=f"Remove {noun} 1").click()
    bench.send_button.click()
    expect(bench.alert).to_have_text(f"Add at least one {noun}.")
    expect(bench.page.get_by_role("button", name=f"Add {noun}")).to_be_focused()


@pytest.mark.parametrize(
    ("model", "view", "label"),
    [("sentiment", "", "Text"), ("rerank", "rerank", "document 1"), ("chat", "chat", "Message")],
)
def test_half_a_character_is_replaced(
    model: str, view: str, label: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, view)
    if model == "chat":
        bench.limit_tokens(2)
    set_value(bench.field(label), "One \ud800 two.")
    bench.send()
    sent = bench.exchanges[-1]
    assert sent.status == 200
    assert "One \ufffd two." in str(sent.body)
