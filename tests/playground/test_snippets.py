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

import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.docs.answers import assert_alike
from tests.playground.conftest import VIEWS, OpenWorkbench
from tests.playground.workbench import set_value
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

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
    programs = {
        "curl": ["bash", "-ec", bench.show_code("curl")],
        "Python": [sys.executable, "-c", bench.show_code("Python")],
        "OpenAI client": [sys.executable, "-c", _dumping(bench.show_code("OpenAI client"), streams)],
    }
    printed = run_all(programs)
    if streams:
        text = streamed_text(printed["curl"])
        assert text
        assert streamed_text(printed["Python"]) == text
        assert printed["OpenAI client"] == text
        expect_shown(bench.answer.inner_text(), text)
    else:
        assert_alike(without_own(json.loads(printed["curl"])), without_own(answer))
        assert_alike(without_own(ast.literal_eval(printed["Python"])), without_own(answer))
        assert_alike(without_own(json.loads(printed["OpenAI client"])), without_own(answer))


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


def _dumping(code: str, streams: bool) -> str:
    """The code, which prints its answer as JSON: some of the client's answers print as objects."""
    if streams:
        return code
    assert code.endswith("\nprint(answer)")
    dumping = "print(json.dumps(answer.model_dump() if hasattr(answer, 'model_dump') else answer))"
    return "import json\n" + code.removesuffix("print(answer)") + dumping


def run_all(programs: dict[str, list[str]], **environment: str) -> dict[str, str]:
    """What programs print that run at once, by their names.

    Raises:
        AssertionError: one fails.
    """
    variables = {**os.environ, **environment}
    running = {
        name: subprocess.Popen(words, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for name, words in programs.items()
    }
    ended = {name: (*process.communicate(timeout=120), process.returncode) for name, process in running.items()}
    assert {name: errors for name, (_, errors, status) in ended.items() if status} == {}
    return {name: output for name, (output, _, _) in ended.items()}


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
