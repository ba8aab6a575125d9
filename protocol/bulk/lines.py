"""Files of lines: JSON lines, and plain text with a text a line. Empty lines are no rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

import orjson

from protocol.bulk.parts import Part, PartPlanner
from protocol.bulk.rows import RecordRows, check_columns, find_taken, read_text
from protocol.bulk.source import Source
from runners.core.errors import InputError
from runners.core.predictions import TextInput

BOM = b"\xef\xbb\xbf"
_OTHER_BOMS = (b"\xff\xfe", b"\xfe\xff")
# A longer line is no row, but a file of another format.
LONGEST_LINE = 64 * 2**20

# `orjson` writes at most 254 levels, and reads more.
_MOST_LEVELS = 100

# The record of a line, its JSON as it stands in the file if it is an object, and its text.
Parsed = tuple[Mapping[str, Any], bytes | None, TextInput | InputError]


class Lines(Source):
    """A file of lines, each of which is a row."""

    def plan(self, part_rows: int) -> tuple[Part, ...]:
        with open(self.path, "rb") as file:
            planner = PartPlanner(skip_bom(file), 1, part_rows)
            for number, line in enumerate(read_lines(file), 1):
                self.check(line, number)
                planner.add(len(line), is_row=not line.isspace())
            return planner.finish()

    def read_rows(self, part: Part) -> RecordRows:
        with open(self.path, "rb") as file:
            file.seek(part.start)
            data = file.read(part.end - part.start)
        return parse_lines(enumerate(data.split(b"\n"), part.line), self.parse)

    def check_start(self) -> None:
        with open(self.path, "rb") as file:
            skip_bom(file)
            for number, line in enumerate(read_lines(file), 1):
                if not line.isspace():
                    self.check_first(line, number)
                    return

    @abstractmethod
    def parse(self, line: bytes, number: int) -> Parsed:
        """The row of a line."""

    def check(self, line: bytes, number: int) -> None:
        """
        Raises:
            InputError: the line has a column that the job would write.
        """

    def check_first(self, line: bytes, number: int) -> None:
        """
        Raises:
            InputError: the file is of another format, or the columns of its first row are wrong.
        """


class TextLines(Lines):
    """A text a line."""

    def parse(self, line: bytes, number: int) -> Parsed:
        return parse_text(line, number, self.text_column)


class JsonLines(Lines):
    """A JSON value a line: an object, whose members are columns, or an instance of V1."""

    def __init__(self, path: Path, text_column: str, answer_columns: Collection[str]) -> None:
        super().__init__(path, text_column, answer_columns)
        self._quoted = tuple(b'"%b"' % name.encode() for name in answer_columns)

    def parse(self, line: bytes, number: int) -> Parsed:
        return parse_json(line, number, self.text_column, self.answer_columns)

    def check(self, line: bytes, number: int) -> None:
        if not any(name in line for name in self._quoted):
            return
        try:
            value = orjson.loads(line)
        except ValueError:
            return
        if isinstance(value, dict) and (taken := find_taken(value, self.answer_columns)):
            raise InputError(f"line {number} {taken}")

    def check_first(self, line: bytes, number: int) -> None:
        check_first_json(line, number, self.text_column, self.answer_columns)


def skip_bom(file: BufferedReader) -> int:
    """The byte at which the text of a file starts.

    Raises:
        InputError: the file is UTF-16 or UTF-32.
    """
    start = file.read(3)
    check_encoding(start)
    file.seek(len(BOM) if start == BOM else 0)
    return file.tell()


def check_encoding(start: bytes) -> None:
    """
    Args:
        start: the first bytes of a file or stream.

    Raises:
        InputError: they are those of UTF-16 or UTF-32.
    """
    if start[:2] in _OTHER_BOMS:
        raise InputError("the input is UTF-16 or UTF-32: convert it to UTF-8")


def read_lines(file: BufferedReader | BytesIO) -> Iterator[bytes]:
    """The lines of a file, with their ends.

    Raises:
        InputError: a line is too long.
    """
    read = file.readline
    number = 0
    while line := read(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            raise describe_long_line(number)
        yield line


def describe_long_line(number: int) -> InputError:
    return InputError(f"line {number} has more than {LONGEST_LINE >> 20} MiB: this is no file of lines")


def parse_lines(lines: Iterable[tuple[int, bytes]], parse: Callable[[bytes, int], Parsed]) -> RecordRows:
    """The rows of numbered lines."""
    records, json, texts = [], [], []
    for number, line in lines:
        if line and not line.isspace():
            record, raw, text = parse(line, number)
            records.append(record)
            json.append(raw)
            texts.append(text)
    return RecordRows(records, texts, json)


def parse_text(line: bytes, number: int, text_column: str) -> Parsed:
    """The row of a line of plain text."""
    line = line.rstrip(b"\r\n")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        return {text_column: line.decode("utf-8", "replace")}, None, InputError(f"line {number} is not UTF-8")
    return {text_column: text}, None, TextInput(text)


def check_first_json(line: bytes, number: int, text_column: str, answer_columns: Collection[str]) -> None:
    """Check the first line that is not empty.

    Raises:
        InputError: the line is not JSON, or a list of objects, or its columns are wrong.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{_describe_error(error, number)}: JSON lines have a value on each line, in UTF-8") from None
    if isinstance(value, dict):
        check_columns(value, text_column, answer_columns)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        raise InputError(f"line {number} is a list of objects: JSON lines have each on a line of its own")


def parse_json(line: bytes, number: int, text_column: str, answer_columns: Collection[str]) -> Parsed:
    """The row of a line of JSON; one that cannot be read has no columns."""
    line = line.strip()
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return {}, None, _describe_error(error, number)
    if line.count(b"[") + line.count(b"{") > _MOST_LEVELS and _count_levels(value) > _MOST_LEVELS:
        return {}, None, InputError(f"line {number} has lists and objects of more than {_MOST_LEVELS} levels")
    is_object = isinstance(value, dict)
    record = value if is_object else {text_column: value}
    if taken := find_taken(record, answer_columns):
        return {}, None, InputError(f"line {number} {taken}")
    try:
        text: TextInput | InputError = read_text(record, text_column)
    except InputError as error:
        text = InputError(f"line {number}: {error}")
    return record, line if is_object else None, text


def _describe_error(error: orjson.JSONDecodeError, number: int) -> InputError:
    """The error of a line, which repeats nothing of it."""
    if "UTF-8" in error.msg:
        return InputError(f"line {number} is not UTF-8")
    return InputError(f"line {number} is not JSON: {error.msg} at column {error.colno}")


def _count_levels(value: Any) -> int:
    """How many lists and objects are in each other, at most."""
    levels, values = 0, [value]
    while values := [each for each in values if isinstance(each, list | dict)]:
        levels += 1
        values = [inner for each in values for inner in (each.values() if isinstance(each, dict) else each)]
    return levels
