from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from runners.core.errors import ModelLoadError, without_message
from runners.core.log_labels import model_label, printable
from runners.core.log_lines import make_json_renderer, make_text_renderer, render_end
from runners.core.request_record import RequestRecord, current_record

SECRET = "a secret"
as_json = make_json_renderer({"worker": 1, "pid": 7})
as_text = make_text_renderer(lambda: "service:1")


def make_record(name: str, message: str, *args: object, **others: Any) -> logging.LogRecord:
    error = others.pop("error", None)
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(name, logging.ERROR, "file.py", 3, message, args, exc_info)
    vars(record).update(others)
    return record


def raised(cause: bool = False) -> Exception:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise RuntimeError(SECRET) from (error if cause else None)
    except RuntimeError as error:
        return error


@pytest.fixture
def request_record() -> Iterator[RequestRecord]:
    record = RequestRecord("openai", "/v1/completions", "POST")
    token = current_record.set(record)
    yield record
    current_record.reset(token)


def test_a_line_of_json(request_record: RequestRecord) -> None:
    request_record.request_id, request_record.model_name = "a\nb", "ner"
    request_record.trace_id, request_record.span_id = "0af7", "b7ad"
    line = as_json(make_record("runners.x", "of %s\n%d", "é\ud800", 3, reference="3f2a"))
    assert line.count(b"\n") == 1
    fields = json.loads(line)
    assert datetime.fromisoformat(fields.pop("timestamp")).utcoffset() is not None
    assert fields == {
        "level": "error", "logger": "runners.x", "message": "of é?\n3", "worker": 1, "pid": 7, "model": "ner",
        "request_id": "a?b", "trace_id": "0af7", "span_id": "b7ad", "reference": "3f2a",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("logger", "given", "end"),
    [
        ("protocol.openai", "abc", "50% of model (request_id=abc)\n"),
        ("runners", "100%s", "50% of model (request_id=100%s)\n"),
        ("runners.encoder", "a\r\nb\x1b[1m\x85c", "50% of model (request_id=a??b?[1m?c)\n"),
        ("runners.encoder", "a" * 1000, f"50% of model (request_id={'a' * 128})\n"),
        ("runners.encoder", None, "50% of model\n"),
        ("protocols", "abc", "50% of model\n"),
        ("elsewhere.protocol", "abc", "50% of model\n"),
    ],
)
def test_a_line_of_text(request_record: RequestRecord, logger: str, given: str | None, end: str) -> None:
    request_record.request_id = given
    line = as_text(make_record(logger, "50%% of %s", "model")).decode()
    assert line.partition(" ")[2] == f"[ERROR] [service:1] {end}"


def test_a_line_names_the_model() -> None:
    token = model_label.set("ner, version=2")
    try:
        assert as_text(make_record("runners.x", "slow")).endswith(b"slow (model=ner, version=2)\n")
        assert json.loads(as_json(make_record("runners.x", "slow")))["model"] == "ner, version=2"
    finally:
        model_label.reset(token)


@pytest.mark.parametrize(
    ("logger", "end"), [("runners.x", "no model a?[ERROR] b\n"), ("vllm", "no model a\n    [ERROR] b\n")]
)
def test_what_clients_send_begins_no_line_of_text(logger: str, end: str) -> None:
    assert as_text(make_record(logger, "no model %s", "a\n[ERROR] b")).decode().endswith(end)


@pytest.mark.parametrize("render", [as_json, as_text])
@pytest.mark.parametrize("has_cause", [False, True])
def test_messages_of_exceptions_are_left_out(render: Any, has_cause: bool) -> None:
    error = raised(has_cause)
    for record in (
        make_record("uvicorn.error", "Exception in ASGI application\n", error=error),
        make_record("asyncio", f"Task exception was never retrieved\nfuture: RuntimeError({SECRET!r})", error=error),
        make_record("runners.x", "a request failed", error=without_message(error)),
    ):
        line = render(record).decode()
        assert SECRET not in line
        assert "in raised" in line
        assert "RuntimeError" in line
    assert ("ValueError" in render(make_record("uvicorn.error", "", error=error)).decode()) == has_cause


def test_the_fields_of_an_exception() -> None:
    fields = json.loads(as_json(make_record("runners.x", "failed", error=without_message(raised()))))
    assert fields["exception"] == "RuntimeError"
    assert fields["traceback"].startswith("Traceback (most recent call last):\n")
    assert "in raised" in fields["traceback"]


@pytest.mark.parametrize("render", [as_json, as_text])
def test_passwords_of_uris_are_left_out(render: Any) -> None:
    uri = "https://me:hush@hub/model"
    error = ModelLoadError(f"{uri} is gone")
    for record in (
        make_record("runners", "asks %s", uri),
        make_record("httpx", "asks %s", uri),
        make_record("runners", "fails", error=error),
    ):
        line = render(record).decode()
        assert "hush" not in line
    assert "https://hub/model is gone" in line


@pytest.mark.parametrize("inputs", [['a "b"\n\x85c'], ["\ud800"]])
def test_inputs_are_escaped(inputs: list[str]) -> None:
    record = make_record("runners.x", "inputs:", inputs=inputs)
    assert json.loads(as_json(record))["inputs"] == [inputs[0].encode("utf-8", "replace").decode()]
    text = as_text(record).decode()
    assert text.count("\n") == 1
    assert text[:-1].isprintable()


def test_the_line_of_an_end() -> None:
    assert render_end("no model", is_json=False) == "error: no model\n"
    fields = json.loads(render_end("no model", is_json=True))
    assert (fields["level"], fields["message"]) == ("critical", "no model")
    assert render_end("no https://me:hush@hub", is_json=False) == "error: no https://hub\n"


@pytest.mark.parametrize(
    ("text", "printed"), [("a b-é_1", "a b-é_1"), ("a\nb", "a?b"), ("\x00\x7f\u2028", "???"), ("a" * 200, "a" * 128)]
)
def test_printable(text: str, printed: str) -> None:
    assert printable(text) == printed
