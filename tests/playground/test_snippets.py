"""The code that the playground shows: it runs as it is, and gets the answer that the page shows."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.conftest import ModelFolder
from tests.docs.answers import assert_alike
from tests.playground.conftest import VIEWS, OpenWorkbench
from tests.playground.workbench import Workbench, set_value
from tests.servers import ServerProcess, free_port, serve_models

pytestmark = [pytest.mark.slow, needs_browser()]

KEY = "secret"
# What differs between two equal requests.
_OWN = {"id", "created", "request_id", "system_fingerprint"}


@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_the_shown_code_gets_the_shown_answer(
    model: str, view: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, view)
    if model == "chat":
        bench.limit_tokens(8)
    bench.send()
    request = bench.exchanges[-1].body
    streams = bool(request.get("stream"))
    answer = None if streams else bench.repeat()
    printed = run_all(write_programs(bench, streams))
    if streams:
        text = streamed_text(printed["curl"])
        assert text
        assert streamed_text(printed["Python"]) == text
        assert printed["OpenAI client"] == text
        expect_shown(bench.answer.inner_text(), text)
    else:
        assert_printed(printed, answer)


@pytest.fixture(scope="module")
def guarded(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for `KEY`."""
    models = {"model": {"model_dir": model_folder("bert", "sequence_classification")}}
    with serve_models(tmp_path_factory.mktemp("home"), models, api_key=KEY) as server:
        yield server


def test_the_code_takes_the_key_from_the_environment(workbenches: OpenWorkbench, guarded: ServerProcess) -> None:
    """The key itself is in none of it."""
    bench = workbenches(guarded)
    bench.open()
    bench.key_field().fill(KEY)
    bench.page.keyboard.press("Enter")
    expect(bench.model("model")).to_be_checked()
    bench.visit.expect_fault("status of 401")
    bench.send()
    sent = bench.exchanges[-1]
    headers = {"authorization": f"Bearer {KEY}"}
    answer = httpx.post(guarded.url + sent.path, json=sent.body, headers=headers).raise_for_status().json()
    programs = write_programs(bench, streams=False)
    assert KEY not in str(programs)
    assert_printed(run_all(programs, API_KEY=KEY), answer)
    refused = run(programs)
    assert "key" in json.loads(refused["curl"].stdout)["error"]
    for language in ("Python", "OpenAI client"):
        assert "KeyError: 'API_KEY'" in refused[language].stderr


@pytest.mark.parametrize(("model", "view"), [("sentiment", ""), ("chat", "completion")])
def test_curl_says_that_the_server_is_not_reached(
    model: str, view: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, view)
    code = bench.show_code("curl").replace(server.url, f"http://127.0.0.1:{free_port()}")
    ended = subprocess.run(["bash", "-ec", code], capture_output=True, text=True)
    assert ended.returncode == 7
    assert ended.stderr.startswith("curl: (7)")


def test_the_code_is_for_the_inputs(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Where they make no request, the page says why; code of another request would be copied by mistake."""
    bench = workbenches(server)
    bench.open("bert")
    copy = bench.page.get_by_role("button", name="Copy")
    text = bench.field("Text with gaps")
    expect(bench.code).to_contain_text("The capital of France")
    text.fill("")
    expect(bench.code).to_have_text("No code for these inputs. Text with gaps is empty.")
    expect(copy).to_be_disabled()
    bench.show_code("Python")
    expect(bench.code).to_have_text("No code for these inputs. Text with gaps is empty.")
    text.fill("It is [MASK].")
    expect(bench.code).to_contain_text('"inputs": "It is [MASK]."')
    expect(copy).to_be_enabled()
    bench.send()
    # The text then has no gap.
    bench.page.get_by_role("button", name="Use this text").click()
    expect(bench.code).to_contain_text("The text has no gap")
    text.fill("Before the pause [MASK] is sent.")
    bench.send_button.click()
    expect(bench.code).to_contain_text("Before the pause")


def test_the_code_of_a_message_stays_after_it_is_sent(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Also if it is sent at once after the last letter, and its field is empty then."""
    bench = workbenches(server)
    bench.page.clock.install()
    bench.open("chat", "chat")
    bench.limit_tokens(4)
    bench.field("Message").focus()
    bench.page.keyboard.press("Control+A")
    bench.page.keyboard.insert_text("Good morning.")
    bench.page.keyboard.press("Enter")
    bench.wait()
    expect(bench.field("Message")).to_have_value("")
    # The page writes the code a moment after the last letter.
    bench.page.clock.fast_forward(1000)
    expect(bench.code).to_contain_text("Good morning.")
    bench.page.get_by_role("button", name="New conversation").click()
    expect(bench.code).to_have_text("No code for these inputs. Message is empty.")


def test_copying_without_tls_keeps_the_focus(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Pages of plain HTTP have no clipboard of their own."""
    bench = workbenches(server)
    bench.visit.context.add_init_script("delete Navigator.prototype.clipboard")
    bench.open("sentiment")
    code = bench.show_code("curl")
    copy = bench.page.get_by_role("button", name="Copy")
    copy.focus()
    bench.page.keyboard.press("Enter")
    expect(bench.page.get_by_text("Copied", exact=True)).to_be_visible()
    expect(copy).to_be_focused()
    bench.field("Text").focus()
    bench.page.keyboard.press("Control+A")
    bench.page.keyboard.press("Control+V")
    expect(bench.field("Text")).to_have_value(code)


TEXTS = {
    "quotes": """It's "fine" \\ 'too', $HOME `id` %s {x} !! \\n""",
    "lines": "One\n\ttwo\r\n\nEOF\nthree",
    "characters of other scripts": "é ß 日本 👩\u200d👩\u200d👧 😀 \x7f\x85",
    "characters that are not seen": "a\u200bb\u202ec\u2066d\u2069e\u200ff\u2028g\ufeffh\u00adi",
    "more than an argument of a program": '日本\'s "text" ' * 10_000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_copied_code_sends_the_very_text(
    name: str, workbenches: OpenWorkbench, server: ServerProcess, listener: Listener, tmp_path: Path
) -> None:
    """Every text, to the last character: a listener in the server's place gets it from all of the languages."""
    bench = workbenches(server, permissions=["clipboard-read", "clipboard-write"])
    bench.open("sentiment")
    example = bench.field("Text").input_value()
    set_value(bench.field("Text"), TEXTS[name])
    expect(bench.code).not_to_contain_text(example)
    # A field has its own ends of lines.
    expected = bench.field("Text").input_value()
    for language, program in {"curl": "bash", "Python": sys.executable, "OpenAI client": sys.executable}.items():
        bench.show_code(language)
        bench.page.get_by_role("button", name="Copy").click()
        expect(bench.page.get_by_text("Copied", exact=True)).to_be_visible()
        code: str = bench.page.evaluate("() => navigator.clipboard.readText()")
        assert not re.search("[\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]", code)
        # What is shown of long code is a part.
        assert len(bench.code.inner_text()) < 25_000
        path = tmp_path / "program"
        path.write_text(code.replace(server.url, listener.url))
        run_all({language: [program, str(path)]})
        assert json.loads(listener.bodies.pop()) == {"inputs": expected}


class Listener:
    """A server that answers anything with `{}`.

    Attributes:
        bodies: what it got.
    """

    def __init__(self) -> None:
        self.bodies = bodies = list[bytes]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()
    listener.server.server_close()


def write_programs(bench: Workbench, streams: bool) -> dict[str, list[str]]:
    """The commands that run the shown code, by its languages."""
    return {
        "curl": ["bash", "-ec", bench.show_code("curl")],
        "Python": [sys.executable, "-c", bench.show_code("Python")],
        "OpenAI client": [sys.executable, "-c", _dumping(bench.show_code("OpenAI client"), streams)],
    }


def _dumping(code: str, streams: bool) -> str:
    """The code, which prints its answer as JSON: some of the client's answers print as objects."""
    if streams:
        return code
    assert code.endswith("\nprint(answer)")
    dumping = "print(json.dumps(answer.model_dump() if hasattr(answer, 'model_dump') else answer))"
    return "import json\n" + code.removesuffix("print(answer)") + dumping


def run(programs: dict[str, list[str]], **environment: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run programs at once, without a key but that of `environment`, and return how they ended, by their names."""
    variables = {name: value for name, value in os.environ.items() if name != "API_KEY"} | environment
    running = {
        name: subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, words in programs.items()
    }
    outputs = {name: process.communicate(timeout=120) for name, process in running.items()}
    return {
        name: subprocess.CompletedProcess(programs[name], process.returncode, *outputs[name])
        for name, process in running.items()
    }


def run_all(programs: dict[str, list[str]], **environment: str) -> dict[str, str]:
    """What programs print that run at once, by their names.

    Raises:
        AssertionError: one fails.
    """
    ended = run(programs, **environment)
    assert {name: each.stderr for name, each in ended.items() if each.returncode} == {}
    return {name: each.stdout for name, each in ended.items()}


def assert_printed(printed: dict[str, str], answer: Any) -> None:
    """All of the programs printed an answer, as their languages write it."""
    for name, output in printed.items():
        read = ast.literal_eval if name == "Python" else json.loads
        assert_alike(without_own(read(output)), without_own(answer))


def streamed_text(lines: str) -> str:
    """The text of a stream of OpenAI's chat or completions."""
    events = [line.removeprefix("data: ") for line in lines.splitlines() if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)


def without_own(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {name: without_own(value) for name, value in sorted(answer.items()) if name not in _OWN}
    return [without_own(each) for each in answer] if isinstance(answer, list) else answer


def expect_shown(shown: str, text: str) -> None:
    """White space apart, which pages collapse."""
    assert "".join(text.split()) in "".join(shown.split())
