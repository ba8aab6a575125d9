"""Parses YAML, JSON and TOML to the same plain values, with the line of each."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import yaml

from runners.core.toml_lines import find_toml_lines

# The keys and indices from the top of a file to a value.
KeyPath: TypeAlias = tuple[str | int, ...]
Lines: TypeAlias = dict[KeyPath, int]

MAX_DEPTH = 32
TOO_DEEP = f"more than {MAX_DEPTH} lists and mappings in each other"
_LINE_IN_MESSAGE = re.compile(r" \(at line (?P<line>\d+), column \d+\)$")
_TAG_HANDLE = re.compile(r" '!.*'")
_SPACE = re.compile(r"[ \t\r\n]*")


class FileSyntaxError(Exception):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line
        self.problem = problem


class WrittenFloat(float):
    """A number that is not whole, whose text stays as it is in the file: version 1.10 is not 1.1."""

    text: str

    def __new__(cls, text: str) -> WrittenFloat:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __str__(self) -> str:
        return self.text


class _YamlLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Composes nodes with the scalars of YAML 1.2, so that `no` and `2026-01-01` are text, as in JSON and TOML."""

    yaml_implicit_resolvers: Mapping[str, Any] = {}
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise FileSyntaxError(event.start_mark.line + 1, "anchors (&) and aliases (*) are not supported")
        if self._depth > MAX_DEPTH:
            raise FileSyntaxError(event.start_mark.line + 1, TOO_DEEP)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def _resolve(kind: str, pattern: str, first: Iterable[str]) -> None:
    _YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(f"(?:{pattern})$"), list(first))


_resolve("null", "~|null|Null|NULL|", ["~", "n", "N", ""])
_resolve("bool", "true|True|TRUE|false|False|FALSE", "tTfF")
_resolve("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789")
_resolve("float", r"[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", "-+0123456789")
_YAML_SCALARS: Mapping[str, Callable[[str], object]] = {
    "null": lambda text: None,
    "bool": lambda text: text.lower() == "true",
    "int": int,
    "float": WrittenFloat,
    "str": str,
}


def _parse_yaml(text: str) -> tuple[object, Lines]:
    try:
        node = yaml.compose(text, _YamlLoader)
    except yaml.MarkedYAMLError as error:
        # A text without an end is noticed far below it.
        scanning = (error.context or "").startswith("while scanning")
        mark = (error.context_mark if scanning else error.problem_mark) or error.problem_mark
        # A handle may be a part of a key.
        problem = _TAG_HANDLE.sub("", error.problem or error.context or "")
        raise FileSyntaxError(1 if mark is None else mark.line + 1, f"not valid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        raise FileSyntaxError(text.count("\n", 0, error.position) + 1, f"not valid YAML: {error.reason}") from error
    lines: Lines = {}
    return _convert_node(node, (), lines), lines


def _convert_node(node: yaml.Node | None, path: KeyPath, lines: Lines) -> object:
    if node is None:
        return None
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
    if isinstance(node, yaml.MappingNode) and kind == "map":
        mapping: dict[str, object] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise FileSyntaxError(key_line, "a name must be text")
            key = str(key_node.value)
            if key in mapping:
                raise FileSyntaxError(key_line, f"{key!r} is given twice, also in line {lines[*path, key]}")
            lines[*path, key] = key_line
            mapping[key] = _convert_node(value_node, (*path, key), lines)
        return mapping
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_convert_node(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode) and kind in _YAML_SCALARS:
        try:
            return _YAML_SCALARS[kind](node.value)
        except ValueError:
            raise FileSyntaxError(line, f"not valid YAML: a value is not of its type, {kind}") from None
    raise FileSyntaxError(line, "tags (!) other than those of text, numbers and booleans are not supported")


def _parse_json(text: str) -> tuple[object, Lines]:
    try:
        # Numbers are converted where their lines are known.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=str)
    except json.JSONDecodeError as error:
        raise FileSyntaxError(error.lineno, f"not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise FileSyntaxError(1, TOO_DEEP) from error
    reader = _JsonReader(text)
    return reader.read(()), reader.lines


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


class _JsonReader:
    """Reads valid JSON again, with lines."""

    def __init__(self, text: str) -> None:
        self.lines: Lines = {}
        self._text = text
        self._position = 0
        self._counted = 0
        self._line = 1
        self._decoder = json.JSONDecoder(parse_float=WrittenFloat, parse_constant=_refuse_constant)

    def read(self, path: KeyPath) -> object:
        character = self._peek()
        self.lines.setdefault(path, self._line)
        if len(path) > MAX_DEPTH:
            raise FileSyntaxError(self._line, TOO_DEEP)
        if character == "{":
            return self._read_object(path)
        if character == "[":
            return self._read_array(path)
        return self._read_scalar()

    def _read_object(self, path: KeyPath) -> dict[str, object]:
        mapping: dict[str, object] = {}
        self._position += 1
        while self._peek() != "}":
            key = str(self._read_scalar())
            if key in mapping:
                raise FileSyntaxError(self._line, f"{key!r} is given twice, also in line {self.lines[*path, key]}")
            self.lines[*path, key] = self._line
            self._skip(":")
            mapping[key] = self.read((*path, key))
            self._skip(",")
        self._position += 1
        return mapping

    def _read_array(self, path: KeyPath) -> list[object]:
        items: list[object] = []
        self._position += 1
        while self._peek() != "]":
            items.append(self.read((*path, len(items))))
            self._skip(",")
        self._position += 1
        return items

    def _read_scalar(self) -> object:
        try:
            value, self._position = self._decoder.raw_decode(self._text, self._position)
        except ValueError as error:
            raise FileSyntaxError(self._line, f"not valid JSON: {error}") from error
        return value

    def _peek(self) -> str:
        """The next character that is no space; counts the lines up to it."""
        space = _SPACE.match(self._text, self._position)
        assert space is not None
        self._position = space.end()
        self._line += self._text.count("\n", self._counted, self._position)
        self._counted = self._position
        return self._text[self._position]

    def _skip(self, mark: str) -> None:
        if self._peek() == mark:
            self._position += 1


def _parse_toml(text: str) -> tuple[object, Lines]:
    try:
        values = tomllib.loads(text, parse_float=WrittenFloat)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = _LINE_IN_MESSAGE.search(message)
        line = int(found["line"]) if found else text.count("\n") + 1
        problem = _LINE_IN_MESSAGE.sub("", message).removesuffix(" (at end of document)")
        raise FileSyntaxError(line, f"not valid TOML: {problem}") from error
    except RecursionError as error:
        raise FileSyntaxError(1, TOO_DEEP) from error
    except ValueError as error:
        raise FileSyntaxError(1, f"not valid TOML: {error}") from error
    return values, find_toml_lines(text)


PARSERS: Mapping[str, Callable[[str], tuple[object, Lines]]] = {
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": _parse_json,
    ".toml": _parse_toml,
}
