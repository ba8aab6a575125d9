"""CSV, in which a row may have several lines."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from typing import Any

from protocol.bulk.lines import read_lines, skip_bom
from protocol.bulk.parts import Part, PartPlanner
from protocol.bulk.rows import PAIR, RecordRows, check_columns, read_text
from protocol.bulk.source import Source
from runners.core.errors import InputError
from runners.core.predictions import TextInput

# A longer field is a quote that is never closed.
_LONGEST_FIELD = 16 * 2**20
_ENCODING = "utf-8"
# Keeps bytes that are not UTF-8, so that they are found in their row.
_KEEP = "surrogateescape"


class CsvTable(Source):
    """A CSV file with commas, and the names of its columns in the first row."""

    _header: Sequence[str] | None = None

    def check_start(self) -> None:
        with open(self.path, "rb") as file:
            header, _, _ = _read_header(file)
        check_columns(header, self.text_column, self.written)

    def plan(self, part_rows: int) -> tuple[Part, ...]:
        with open(self.path, "rb") as file:
            _, start, line = _read_header(file)
            counted = _CountedLines(file)
            planner = PartPlanner(start, line, part_rows)
            for row in _read_rows(counted):
                planner.add(*counted.take(), is_row=row is None or bool(row))
            return planner.finish()

    def read(self, part: Part) -> RecordRows:
        with open(self.path, "rb") as file:
            if self._header is None:
                self._header, _, _ = _read_header(file)
            file.seek(part.start)
            data = file.read(part.end - part.start)
        counted = _CountedLines(BytesIO(data))
        records, texts, line = [], [], part.line
        for row in _read_rows(counted):
            _, lines = counted.take()
            if row is None or row:
                record, text = self._parse(row, line)
                records.append(record)
                texts.append(text)
            line += lines
        return RecordRows(records, texts)

    def _parse(self, row: list[str] | None, line: int) -> tuple[Mapping[str, Any], TextInput | InputError]:
        if row is None:
            return {}, InputError(f"line {line} is not CSV: a field has more than {_LONGEST_FIELD >> 20} MiB")
        assert self._header is not None
        record: dict[str, str | None] = dict(zip(self._header, row, strict=False))
        if len(row) != len(self._header):
            error = InputError(f"line {line} has {len(row)} fields, and the first row has {len(self._header)}")
            return {name: value and _replace(value) for name, value in record.items()}, error
        if any(not value.isascii() and not _is_text(value) for value in row):
            return {name: _replace(value) for name, value in zip(self._header, row, strict=True)}, InputError(
                f"line {line} is not UTF-8"
            )
        # An empty cell is no second text.
        pair = record.get(PAIR)
        try:
            return record, read_text(record if pair else {**record, PAIR: None}, self.text_column)
        except InputError as error:
            return record, InputError(f"line {line}: {error}")


class _CountedLines(Iterator[str]):
    """The lines of a file for a reader of CSV, which are counted."""

    def __init__(self, file: BufferedReader | BytesIO) -> None:
        self._lines = read_lines(file)
        self._size = self._count = 0

    def __next__(self) -> str:
        line = next(self._lines)
        self._size += len(line)
        self._count += 1
        return line.decode(_ENCODING, _KEEP)

    def take(self) -> tuple[int, int]:
        """How many bytes and lines were read since the last call."""
        counts = self._size, self._count
        self._size = self._count = 0
        return counts


def _read_rows(lines: Iterable[str]) -> Iterator[list[str] | None]:
    """The fields of each row; None for what is no row."""
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader(lines)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield None


def _read_header(file: BufferedReader) -> tuple[list[str], int, int]:
    """The names of the columns, and the byte and the line at which the rows start.

    Raises:
        InputError: the file is empty, or two columns have one name.
    """
    start, line = skip_bom(file), 1
    counted = _CountedLines(file)
    for row in _read_rows(counted):
        size, lines = counted.take()
        start, line = start + size, line + lines
        if row is None or any(not _is_text(name) for name in row):
            raise InputError("the first row of the input is not CSV in UTF-8")
        if row:
            if twice := [name for position, name in enumerate(row) if name in row[:position]]:
                raise InputError(f"the input has two columns {twice[0]!r}: rename one")
            file.seek(start)
            return row, start, line
    raise InputError("the input is empty: its first row must have the names of the columns")


def _is_text(value: str) -> bool:
    try:
        value.encode(_ENCODING)
    except UnicodeEncodeError:
        return False
    return True


def _replace(value: str) -> str:
    return value.encode(_ENCODING, _KEEP).decode(_ENCODING, "replace")
