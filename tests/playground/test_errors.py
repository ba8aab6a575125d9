"""What the playground says when something is wrong, on a server with a key, a prefix, and names that look like markup."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.conftest import ModelFolder
from tests.playground.conftest import OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess, serve_models

pytestmark = [pytest.mark.slow, needs_browser()]

KEY = "secret"
MARKUP = "<img src=x onerror=alert(1)>"
SCRIPT = "</script><script>alert(2)</script>"
NAMES = (MARKUP, 'team/"two" & é')
PREFIX = "/team/models"
LABELS = {0: MARKUP, 1: SCRIPT, 2: "{{7*7}} `${alert(3)}`"}


@pytest.fixture(scope="module")
def guarded(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = model_folder("bert", "sequence_classification", num_labels=3, id2label=LABELS)
    models = {name: {"model_dir": folder} for name in NAMES}
    home = tmp_path_factory.mktemp("home")
    with serve_models(home, models, api_key=KEY, root_path=PREFIX, max_text_characters=1000) as server:
        yield server


def enter_key(bench: Workbench, key: str) -> None:
    bench.key_field().fill(key)
    bench.page.keyboard.press("Enter")


@pytest.fixture
def bench(workbenches: OpenWorkbench, guarded: ServerProcess) -> Workbench:
    """With the right key."""
    bench = workbenches(guarded)
    bench.open()
    enter_key(bench, KEY)
    expect(bench.model(NAMES[0])).to_be_checked()
    bench.visit.expect_fault("status of 401")
    return bench


def test_no_key_then_a_wrong_one_then_the_right_one(workbenches: OpenWorkbench, guarded: ServerProcess) -> None:
    bench = workbenches(guarded)
    bench.open()
    expect(bench.alert).to_contain_text("key")
    expect(bench.page.get_by_label("Key, if the server asks for one")).to_be_focused()
    enter_key(bench, "wrong")
    expect(bench.alert).to_contain_text("key")
    enter_key(bench, KEY)
    expect(bench.alert).to_have_count(0)
    bench.send()
    expect(bench.fact("Latency")).to_contain_text("ms")
    assert KEY not in bench.page.url
    assert KEY not in bench.page.locator("body").inner_text()
    for language in ("curl", "Python", "OpenAI client"):
        assert "API_KEY" in bench.show_code(language)
    bench.visit.expect_fault("status of 401")


def test_a_key_is_kept_only_if_the_user_wants_it(workbenches: OpenWorkbench, guarded: ServerProcess) -> None:
    bench = workbenches(guarded)
    bench.open()
    for keep in (False, True):
        enter_key(bench, KEY)
        bench.page.get_by_label("Keep it until this tab is closed").set_checked(keep)
        bench.page.reload()
        expect(bench.alert).to_have_count(0 if keep else 1)
    bench.visit.expect_fault("status of 401")


def test_a_key_that_no_header_can_carry(bench: Workbench) -> None:
    bench.key_field().fill("schlüssel🔑")
    bench.send_button.click()
    expect(bench.alert.first).to_contain_text("The key has characters that no header can carry.")


def test_names_are_text(bench: Workbench) -> None:
    """A model's name and its labels never run as code, nor break the page or the code that it shows."""
    for name in NAMES:
        bench.choose(name)
        bench.field("Text").fill(MARKUP)
        bench.send()
        for label in LABELS.values():
            expect(bench.answer).to_contain_text(label)
        assert bench.exchanges[-1].status == 200
    assert bench.page.locator("img, script:not([type=module])").count() == 0


@pytest.mark.parametrize("path", ["", "/", "/playground", "/playground/"])
def test_below_the_prefix_that_the_server_knows(path: str, workbenches: OpenWorkbench, guarded: ServerProcess) -> None:
    bench = workbenches(guarded, PREFIX + path)
    bench.open()
    enter_key(bench, KEY)
    expect(bench.model(NAMES[0])).to_be_checked()
    bench.send()
    assert bench.exchanges[-1].path.startswith(f"{PREFIX}/models/")
    expect(bench.fact("Latency")).to_contain_text("ms")
    assert bench.open_reference() == f"{guarded.url}{PREFIX}/docs"
    bench.visit.expect_fault("status of 401")


def test_an_empty_text_is_not_sent(bench: Workbench) -> None:
    bench.field("Text").fill("  ")
    bench.send_button.click()
    expect(bench.alert).to_have_text("Text is empty.")
    expect(bench.field("Text")).to_be_focused()
    assert bench.exchanges == []


def test_a_text_that_is_too_long(bench: Workbench) -> None:
    bench.field("Text").fill("a" * 1001)
    bench.send()
    expect(bench.alert).to_contain_text("1000")
    assert bench.exchanges[-1].status in (400, 413, 422)
    # The page works on.
    bench.field("Text").fill("a")
    bench.send()
    expect(bench.alert).to_have_count(0)
    expect(bench.fact("Latency")).to_contain_text("ms")
    bench.visit.expect_fault("Failed to load resource")


def test_a_model_that_is_gone(bench: Workbench, guarded: ServerProcess) -> None:
    path = f"{guarded.url}/v2/repository/models/{httpx.URL('/' + NAMES[0]).raw_path.decode()[1:]}"
    headers = {"authorization": f"Bearer {KEY}"}
    bench.choose(NAMES[0])
    assert httpx.post(f"{path}/unload", headers=headers).status_code == 200
    bench.send()
    expect(bench.alert).to_contain_text(str(bench.exchanges[-1].status))
    bench.page.get_by_role("button", name="Refresh").click()
    expect(bench.page.locator("main")).to_contain_text("unloaded")
    assert httpx.post(f"{path}/load", headers=headers).status_code == 200
    bench.page.get_by_role("button", name="Refresh").click()
    bench.send()
    expect(bench.fact("Latency")).to_contain_text("ms")
    bench.visit.expect_fault("Failed to load resource")


def test_a_fault_of_the_page_in_a_stream_is_no_broken_connection(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """It reaches the console. The event has a content that cannot become a text."""
    bench = workbenches(server)
    body = 'data: {"choices": [{"delta": {"content": {"toString": null}}, "finish_reason": null}]}\n\n'
    bench.page.route("**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body))
    bench.open("chat", "chat")
    bench.send()
    expect(bench.alert).to_contain_text("This page cannot show the answer.")
    bench.visit.expect_fault("Cannot convert object")


# The last, since it stops the server.
def test_a_server_that_is_gone(bench: Workbench, guarded: ServerProcess) -> None:
    guarded.terminate()
    bench.send()
    expect(bench.alert).to_contain_text("The server did not answer.")
    bench.alert.get_by_role("button", name="Try again").click()
    bench.wait()
    expect(bench.alert).to_contain_text("The server did not answer.")
    bench.visit.expect_fault("ERR_CONNECTION_REFUSED")
