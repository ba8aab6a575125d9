"""Log records as lines: JSON for machines, text for people.

A line holds no user or password that a URI has before its host, and no text of a request: only this project's own
messages are trusted not to repeat one. Exceptions that other libraries log lose their messages, and asyncio's reports
all but their first line, which has no values.
"""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson

from runners.core.errors import UnexpectedError
from runners.core.log_labels import printable, read_labels
from runners.core.redaction import hide_users

Render: TypeAlias = Callable[[logging.LogRecord], bytes]

# Each line of JSON begins so, which no other output does.
JSON_START = b'{"timestamp":'
# What a record's `extra` may add to a line of JSON.
EXTRA_FIELDS = ("reference", "inputs")
_PACKAGES = frozenset({"protocol", "runners", "service"})
_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE


def render_fields(created: float, level: str, logger: str, fields: Mapping[str, object]) -> bytes:
    """A line of JSON.

    Args:
        created: when it was logged, in seconds since 1970.
        fields: further fields; those without a value are left out by the caller.
    """
    line = {"timestamp": datetime.fromtimestamp(created, UTC), "level": level, "logger": logger, **fields}
    try:
        return orjson.dumps(line, default=str, option=_OPTIONS)
    except TypeError:
        # A lone surrogate, which a client can send and UTF-8 cannot carry.
        return orjson.dumps(_replace_surrogates(line), default=str, option=_OPTIONS)


def _replace_surrogates(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode("utf-8")
        case dict():
            return {name: _replace_surrogates(item) for name, item in value.items()}
        case list() | tuple():
            return [_replace_surrogates(item) for item in value]
    return value


def make_json_renderer(process: Mapping[str, object]) -> Render:
    """Renders records as JSON.

    Args:
        process: the fields that say which process logs.
    """

    def render(record: logging.LogRecord) -> bytes:
        fields: dict[str, object] = {"message": read_message(record), **process, **read_labels()}
        for name in EXTRA_FIELDS:
            if (value := getattr(record, name, None)) is not None:
                fields[name] = value
        if record.exc_info is not None and (error := record.exc_info[1]) is not None:
            fields["exception"] = name_type(error)
            fields["traceback"] = describe_exception(error, _is_own(record))
        return render_fields(record.created, record.levelname.lower(), record.name, fields)

    return render


def make_text_renderer(name_component: Callable[[], str]) -> Render:
    """Renders records as BentoML does, on one line but for tracebacks.

    Args:
        name_component: the name of the process, such as entry_service:huggingface_runtime:1.
    """

    def render(record: logging.LogRecord) -> bytes:
        message = read_message(record)
        if _is_own(record):
            # Some messages have the labels already.
            known = {} if getattr(record, "unlabelled", False) else read_labels()
            labels = ", ".join(f"{name}={value}" for name, value in known.items() if name != "span_id")
            # What clients send, such as a model's name, must not look like another line.
            message = printable(message, len(message)) + (f" ({labels})" if labels else "")
        elif not message.isprintable():
            message = "\n    ".join(printable(line, len(line)) for line in message.splitlines())
        inputs = getattr(record, "inputs", None)
        if inputs is not None:
            message += f" {_escape(orjson.dumps(_replace_surrogates(inputs)).decode())}"
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
        line = f"{seconds} [{record.levelname}] [{name_component()}] {message}\n"
        if record.exc_info is not None and (error := record.exc_info[1]) is not None:
            line += describe_exception(error, _is_own(record)) + "\n"
        return line.encode("utf-8", "backslashreplace")

    return render


def _escape(text: str) -> str:
    """JSON without what is no character of a line, such as controls beyond ASCII."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def read_message(record: logging.LogRecord) -> str:
    """The message of a record, without credentials and the values that asyncio's reports repeat."""
    message = hide_users(record.getMessage())
    return message.partition("\n")[0] if record.name == "asyncio" else message


def _is_own(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] in _PACKAGES


def name_type(error: BaseException) -> str:
    """The name of an error's type; that of an UnexpectedError is the type which it stands for."""
    return str(error) if isinstance(error, UnexpectedError) else type(error).__qualname__


def describe_exception(error: BaseException, with_messages: bool) -> str:
    """The traceback of an error and of those that it follows from, the first one first."""
    if with_messages:
        return hide_users("".join(traceback.format_exception(error)).rstrip())
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        frames = "".join(traceback.format_tb(current.__traceback__))
        parts.insert(0, f"Traceback (most recent call last):\n{frames}{name_type(current)}")
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\nfollowed by:\n\n".join(parts)


def render_end(reason: str, is_json: bool) -> str:
    """The line that says why a server ends."""
    reason = hide_users(reason)
    if not is_json:
        return f"error: {reason}\n"
    return render_fields(time.time(), "critical", "server", {"message": reason, "pid": os.getpid()}).decode()
