"""When requests are sent, replaced and stopped: there is one at a time, and the user says which."""

from __future__ import annotations

import pytest
from playwright.sync_api import Request, expect

from tests.browser import needs_browser
from tests.playground.answers import answer_in_turn
from tests.playground.conftest import OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

_PATH = "models/sentiment"


def hold(bench: Workbench, path: str = _PATH) -> list[Request]:
    """Let the requests of a path have no answer; they are appended to the list that is returned."""
    sent: list[Request] = []
    bench.page.on("request", lambda request: sent.append(request) if request.url.endswith(path) else None)
    bench.page.route(f"**/{path}", lambda _: None)
    return sent


def test_try_again_is_pressed_twice(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The second request takes the place of the first, and "Stop" stops it."""
    bench = workbenches(server)
    bench.open("sentiment")
    answer_in_turn(bench.page, _PATH, {"status": 503})
    bench.send()
    bench.visit.expect_fault("status of 503")
    bench.page.unroute_all()
    sent = hold(bench)
    again = bench.page.get_by_role("button", name="Try again")
    with bench.page.expect_request(f"**/{_PATH}"):
        again.click()
    with bench.page.expect_event("requestfailed") as replaced, bench.page.expect_request(f"**/{_PATH}"):
        again.click()
    with bench.page.expect_event("requestfailed") as stopped:
        bench.page.get_by_role("button", name="Stop").click()
    assert [replaced.value, stopped.value] == sent
    expect(bench.answer).to_contain_text("You stopped it.")
    bench.wait()


def test_a_request_that_another_replaces_is_not_said_to_be_stopped(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    sent = hold(bench)
    with bench.page.expect_request(f"**/{_PATH}"):
        bench.send_button.click()
    with bench.page.expect_event("requestfailed") as replaced, bench.page.expect_request(f"**/{_PATH}"):
        bench.send_button.click()
    assert replaced.value == sent[0]
    expect(bench.answer).not_to_contain_text("You stopped it.")
    expect(bench.answer).to_have_attribute("aria-busy", "true")


@pytest.mark.parametrize(
    ("model", "view", "label", "keys", "path"),
    [
        ("sentiment", "", "Text", ["Control", "Enter"], "models/sentiment"),
        ("chat", "chat", "Message", ["Enter"], "v1/chat/completions"),
        # The browser itself submits a form from a field of one line.
        ("qa", "", "Question", ["Enter"], "models/qa"),
        ("sentiment", "", "", ["Enter"], "models/sentiment"),
    ],
)
def test_keys_that_are_held_send_once(
    model: str,
    view: str,
    label: str,
    keys: list[str],
    path: str,
    workbenches: OpenWorkbench,
    server: ServerProcess,
) -> None:
    """In a field, or on the button."""
    bench = workbenches(server)
    bench.open(model, view)
    sent = hold(bench, path)
    (bench.field(label) if label else bench.send_button).focus()
    for key in [*keys, keys[-1], keys[-1]]:
        bench.page.keyboard.down(key)
    for key in reversed(keys):
        bench.page.keyboard.up(key)
    expect(bench.answer).to_have_attribute("aria-busy", "true")
    bench.page.get_by_role("button", name="Stop").click()
    bench.wait()
    assert len(sent) == 1


def test_a_held_enter_writes_lines(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    bench.field("Text").fill("One")
    for _ in range(3):
        bench.page.keyboard.down("Enter")
    bench.page.keyboard.up("Enter")
    expect(bench.field("Text")).to_have_value("One\n\n\n")


def test_send_is_pressed_twice(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("chat", "chat")
    bench.limit_tokens(4)
    bench.send_button.dblclick()
    bench.wait()
    expect(bench.alert).to_have_count(0)
    assert len(bench.exchanges) == 1


def test_enter_sends_a_message(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Shift and Enter begin a line."""
    bench = workbenches(server)
    bench.open("chat", "chat")
    bench.limit_tokens(4)
    bench.field("Message").fill("One")
    bench.page.keyboard.press("Shift+Enter")
    bench.page.keyboard.insert_text("Two")
    bench.page.keyboard.press("Enter")
    bench.wait()
    assert bench.exchanges[-1].body["messages"][-1]["content"] == "One\nTwo"
