"""The code that the playground shows: it runs as it is, and gets the answer that the page shows."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.browser import needs_browser
from tests.docs.answers import assert_alike
from tests.playground.conftest import VIEWS, OpenWorkbench
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
