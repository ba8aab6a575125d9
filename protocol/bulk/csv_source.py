"""CSV, in which a row may have several lines."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BufferedReader, BytesIO
from typing import Any

from protocol.bulk.lines import LONGEST_LINE, skip_bom
from protocol.bulk.parts import Part, PartPlanner
from protocol.bulk.rows import (
    KEEP_BYTES,
    PAIR,
    RecordRows,
    check_columns,
    check_names,
    is_utf8,
    read_text,
    replace_bytes,
)
from protocol.bulk.source import Source
from runners.core.errors import InputError
from runners.core.predictions import TextInput


class CsvSource(Source):
    """A CSV file with commas, and the names of its columns in the first row."""

    _header: Sequence[str] | None = None

    def check_start(self) -> None:
        with open(self.path, "rb") as file:
            header, _, _ = _read_header(file)
        if self.text_column not in header:
            if len(header) == 1 and (found := next((each for each in ";\t|" if each in header[0]), None)):
                raise InputError(
                    f"the input has one column, {header[0]!r}: separate columns by commas, not by {found!r}"
                )
            if not {"question", "context"} <= {*header} and "words" in header:
                raise InputError(
                    "the column words has lists, which CSV does not have: use JSON lines or Parquet, or let "
                    "--text_column name a column of texts"
                )
        check_columns(header, self.text_column, self.answer_columns)

    def plan(self, part_rows: int) -> tuple[Part, ...]:
        with open(self.path, "rb") as file:
            _, start, line = _read_header(file)
            lines = _CountedLines(file, line)
            planner = PartPlanner(start, line, part_rows)
            for row in _read_rows(lines):
                planner.add(*lines.take(), is_row=row != [])
            return planner.finish()

    def read_rows(self, part: Part) -> RecordRows:
        with open(self.path, "rb") as file:
            if self._header is None:
                self._header, _, _ = _read_header(file)
            file.seek(part.start)
            data = file.read(part.end - part.start)
        lines = _CountedLines(BytesIO(data), part.line)
        records, texts = [], []
        for row in _read_rows(lines):
            if row != []:
                record, text = self._parse(row, lines.line)
                records.append(record)
                texts.append(text)
            lines.take()
        return RecordRows(records, texts, names=self._header)

    def _parse(self, row: list[str] | InputError, line: int) -> tuple[Mapping[str, Any], TextInput | InputError]:
        if isinstance(row, InputError):
            return {}, row
        assert self._header is not None
        record: dict[str, str | None] = dict(zip(self._header, map(replace_bytes, row), strict=False))
        if (more := len(row) - len(self._header)) != 0:
            left_out = f": the output lacks the last {more}" if more > 0 else ""
            return record, InputError(
                f"line {line} has {len(row)} fields, and the first row has {len(self._header)}{left_out}"
            )
        if not all(map(is_utf8, row)):
            return record, InputError(f"line {line} is not UTF-8")
        # An empty cell is no second text.
        pair = record.get(PAIR)
        try:
            return record, read_text(record if pair else {**record, PAIR: None}, self.text_column)
        except InputError as error:
            return record, InputError(f"line {line}: {error}")


class _CountedLines(Iterator[str]):
    """The lines of a file for a reader of CSV, which are counted.

    Attributes:
        line: the number of the first line since the last call of `take`: that of a row.
        has_ended: whether there are no more.
    """

    def __init__(self, file: BufferedReader | BytesIO, line: int) -> None:
        self._file = file
        self._size = self._count = 0
        self.line = line
        self.has_ended = False

    def __next__(self) -> str:
        line = self._file.readline(LONGEST_LINE + 1)
        self.has_ended = not line
        if self.has_ended:
            raise StopIteration
        self._size += len(line)
        self._count += 1
        if self._size > LONGEST_LINE:
            raise InputError(
                f"the row of line {self.line} has more than {LONGEST_LINE >> 20} MiB: a quote in it is never closed, "
                "or the input is no CSV"
            )
        return line.decode("utf-8", KEEP_BYTES)

    def take(self) -> tuple[int, int]:
        """How many bytes and lines were read since the last call."""
        counts = self._size, self._count
        self.line += self._count
        self._size = self._count = 0
        return counts


def make_reader(lines: Iterable[str]) -> Iterator[list[str]]:
    """A reader of rows, whose fields may have any length."""
    csv.field_size_limit(sys.maxsize)
    return csv.reader(lines)


def _read_rows(lines: _CountedLines) -> Iterator[list[str] | InputError]:
    """The fields of each row, or why it is none.

    Raises:
        InputError: a quote is never closed.
    """
    reader = make_reader(lines)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # Fields have any length, and `csv` finds no other error.
            yield InputError(f"line {lines.line} is not CSV: it has a carriage return that is not in quotes")
            continue
        if lines.has_ended:
            # The reader has looked for more of this row.
            raise InputError(f"a quote in the row of line {lines.line} is never closed")
        yield row


def _read_header(file: BufferedReader) -> tuple[list[str], int, int]:
    """The names of the columns, and the byte and the line at which the rows start.

    Raises:
        InputError: the file is empty, or two columns have one name.
    """
    start = skip_bom(file)
    lines = _CountedLines(file, 1)
    for row in _read_rows(lines):
        size, _ = lines.take()
        start += size
        if isinstance(row, InputError):
            raise InputError("the first row of the input is not CSV: its lines must end with LF, or with CR and LF")
        if not all(map(is_utf8, row)):
            raise InputError("the first row of the input is not UTF-8")
        if row:
            check_names(row)
            file.seek(start)
            return row, start, lines.line
    raise InputError("the input is empty: its first row must have the names of the columns")
