"""Finds the lines of the keys in a TOML file, which `tomllib` does not tell."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field

# A string is one token, so that what is in it opens no list and starts no comment.
_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'\'\'.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{},\n]|'
    r'[^\s\[\]{},"\'#]+',
    re.DOTALL,
)
# What is deeper has the line of what is around it.
_MAX_KEYS = 32


@dataclass
class _Statement:
    """A table's header, or a key with its value.

    Attributes:
        items: the lines of the items, if the value is a list.
    """

    line: int
    start: int
    end: int = 0
    items: list[int] = field(default_factory=list)


def find_toml_lines(text: str) -> dict[tuple[str | int, ...], int]:
    """The line of each key, and of each item of a list; what is in an item of a list has none of its own.

    Args:
        text: valid TOML.
    """
    lines: dict[tuple[str | int, ...], int] = {}
    counts: dict[tuple[str | int, ...], int] = {}
    table: tuple[str | int, ...] = ()
    for statement in _split_statements(text):
        source = text[statement.start : statement.end]
        keys = _read_keys(source)
        path = () if source.startswith("[") else table
        for position, key in enumerate(keys, start=1):
            path = (*path, key)
            lines.setdefault(path, statement.line)
            if source.startswith("[[") and position == len(keys):
                counts[path] = counts.get(path, 0) + 1
            if path in counts:
                path = (*path, counts[path] - 1)
                lines.setdefault(path, statement.line)
        if source.startswith("["):
            table = path
        else:
            lines |= {(*path, index): line for index, line in enumerate(statement.items)}
    return lines


def _read_keys(source: str) -> list[str]:
    """The keys of a header or of a statement, such as `a."b c" = 1`."""
    keys: list[str] = []
    value: object = tomllib.loads(source)
    while isinstance(value, dict) and len(value) == 1 and len(keys) < _MAX_KEYS:
        [(key, value)] = value.items()
        keys.append(key)
    return keys


def _split_statements(text: str) -> Iterator[_Statement]:
    statement: _Statement | None = None
    line, counted, depth, is_item = 1, 0, 0, False
    for token in _TOKEN.finditer(text):
        line += text.count("\n", counted, token.start())
        counted = token.start()
        word = token[0]
        if word.startswith("#"):
            continue
        if word == "\n":
            if statement is not None and depth == 0:
                yield statement
                statement = None
            continue
        if statement is None:
            statement = _Statement(line, token.start())
        statement.end = token.end()
        if depth == 1 and is_item and word not in "],":
            statement.items.append(line)
        depth += (word in "[{") - (word in "]}")
        is_item = depth == 1 and word in "[,"
    if statement is not None:
        yield statement
