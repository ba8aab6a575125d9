"""The formats of answers: each writes a part, and joins the parts to one file."""

from __future__ import annotations

import csv
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from protocol.bulk.csv_source import make_reader
from protocol.bulk.rows import ERROR, PREDICTION, Rows, dump_json, list_answer_columns, to_cell
from protocol.bulk.text_answerer import Answer
from protocol.kserve_v1.predictions import render_prediction
from protocol.output_tensors import output_name
from runners.core.errors import InputError
from runners.core.predictions import Prediction


class Output(ABC):
    """A format of answers.

    Attributes:
        extra_names: the columns that an answer has beside its prediction.
    """

    def __init__(self, extra_names: Sequence[str]) -> None:
        self.extra_names = tuple(extra_names)

    @abstractmethod
    def write(self, path: Path, rows: Rows, answers: Sequence[Answer]) -> None:
        """Write the file of a part."""

    @abstractmethod
    def merge(self, paths: Sequence[Path], target: Path) -> None:
        """Join the files of all parts, of which there is one at least."""


class JsonOutput(Output):
    """JSON lines: the columns of a row, and its prediction or its error."""

    def render(self, rows: Rows, answers: Sequence[Answer]) -> bytes:
        """The lines of some rows."""
        return b"".join(
            _join(columns, dump_json(self._list_values(answer)))
            for columns, answer in zip(rows.to_json(), answers, strict=True)
        )

    def _list_values(self, answer: Answer) -> dict[str, Any]:
        return list_values(answer, self.extra_names)

    def write(self, path: Path, rows: Rows, answers: Sequence[Answer]) -> None:
        path.write_bytes(self.render(rows, answers))

    def merge(self, paths: Sequence[Path], target: Path) -> None:
        with open(target, "wb") as joined:
            for path in paths:
                with open(path, "rb") as part:
                    shutil.copyfileobj(part, joined)


class CsvOutput(Output):
    """CSV, whose cells are texts, or JSON of other values."""

    def write(self, path: Path, rows: Rows, answers: Sequence[Answer]) -> None:
        names = (*rows.names, *list_answer_columns(self.extra_names))
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = _CsvWriter(file)
            writer.write(names)
            for record, answer in zip(rows.to_records(), answers, strict=True):
                values = {**record, **list_values(answer, self.extra_names)}
                writer.write([to_cell(values.get(name)) for name in names])

    def merge(self, paths: Sequence[Path], target: Path) -> None:
        headers = [_read_header(path) for path in paths]
        answer_columns = headers[0][headers[0].index(PREDICTION) :]
        names = dict.fromkeys(name for header in headers for name in header if name not in answer_columns)
        header = [*names, *answer_columns]
        with open(target, "w", encoding="utf-8", newline="") as joined:
            writer = _CsvWriter(joined)
            writer.write(header)
            for path in paths:
                _append(path, header, joined, writer)


def _append(path: Path, header: Sequence[str], joined: TextIO, writer: _CsvWriter) -> None:
    """Append the rows of a part, which may lack columns."""
    with open(path, encoding="utf-8", newline="") as part:
        rows = make_reader(part)
        part_header = next(rows)
        if part_header == header:
            shutil.copyfileobj(part, joined)
            return
        places = [part_header.index(name) if name in part_header else None for name in header]
        for row in rows:
            writer.write(["" if place is None else row[place] for place in places])


def _read_header(path: Path) -> list[str]:
    with open(path, encoding="utf-8", newline="") as part:
        return next(make_reader(part))


class _CsvWriter:
    """Writes rows of texts, whose lines end with a line feed."""

    def __init__(self, file: TextIO) -> None:
        self._plain = csv.writer(file, lineterminator="\n")
        # Before Python 3.13 `csv` does not quote a carriage return that ends no row.
        self._quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)

    def write(self, row: Sequence[str]) -> None:
        (self._quoting if any("\r" in cell for cell in row) else self._plain).writerow(row)


class ParquetOutput(Output):
    """Parquet, whose predictions have types of their own."""

    def write(self, path: Path, rows: Rows, answers: Sequence[Answer]) -> None:
        from protocol.bulk.arrow import add_answers, write_table

        write_table(add_answers(rows.to_table(), answers, self.extra_names), path)

    def merge(self, paths: Sequence[Path], target: Path) -> None:
        from protocol.bulk.arrow import merge_tables

        merge_tables(paths, target)


def count_errors(answers: Sequence[Answer]) -> int:
    return sum(isinstance(answer, InputError) for answer in answers)


def list_values(answer: Answer, extra_names: Sequence[str]) -> dict[str, Any]:
    """The columns of an answer, which are V1's prediction and the arrays beside it, or an error."""
    if not isinstance(answer, Prediction):
        return {ERROR: str(answer)}
    arrays = {name: answer.arrays[output_name(name)] for name in extra_names}
    # orjson takes no array without a dimension.
    extras = {name: array if array.ndim else array.item() for name, array in arrays.items()}
    return {PREDICTION: render_prediction(answer), **extras}


def _join(columns: bytes, values: bytes) -> bytes:
    """One JSON object of the members of two."""
    start = columns[:-1].rstrip()
    return b"%b%b%b\n" % (start, b"" if start == b"{" else b",", values[1:])
