"""Parquet files and Arrow's tables; `pyarrow` is imported here alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from protocol.bulk.parts import PART_BYTES, Part
from protocol.bulk.rows import (
    ERROR,
    INSTANCE_COLUMNS,
    PREDICTION,
    Rows,
    check_columns,
    check_names,
    dump_json,
    find_twice,
    read_text,
    to_cell,
)
from protocol.bulk.source import Source
from protocol.bulk.text_answerer import Answer
from protocol.kserve_v1.predictions import render_prediction
from protocol.output_tensors import output_name
from runners.core.errors import InputError, brief
from runners.core.predictions import Numbers, Prediction, TextInput, VocabularyScores

_READ_ROWS = 1024
# A row group of the output has about so many rows or bytes.
_GROUP_ROWS = 2**16
_GROUP_BYTES = 64 * 2**20
# Readers of Parquet refuse a column of many more levels; a list has two.
_MOST_LEVELS = 64


class TableRows(Rows):
    """Rows of a Parquet file, which keep its types."""

    def __init__(self, table: pa.Table, text_column: str) -> None:
        self._table, wrong = _empty_wrong(table)
        read = self._table.select([name for name in table.column_names if name in (text_column, *INSTANCE_COLUMNS)])
        self.texts = [
            InputError(f"{wrong[row]} is not UTF-8, or damaged") if row in wrong else _read_text(record, text_column)
            for row, record in enumerate(_to_records(read))
        ]

    @property
    def names(self) -> Sequence[str]:
        names: list[str] = self._table.column_names
        return names

    def to_records(self) -> Sequence[Mapping[str, Any]]:
        return _to_records(self._table)

    def to_table(self) -> pa.Table:
        return self._table


class ParquetSource(Source):
    """A Parquet file. A part is read on from the part before it, since a group of rows is decoded from its start."""

    _batches: Iterator[pa.RecordBatch] = iter(())
    # What the part before has left of a batch.
    _rest: pa.RecordBatch | None = None
    _position = 0

    def check_start(self) -> None:
        with self._open() as file:
            schema, groups = file.schema_arrow, file.metadata.num_row_groups
        names = schema.names
        check_names(names)
        for field in schema:
            _check_fields(field.name, field.type)
            if groups > 1 and _has_dictionary(field.type):
                raise InputError(
                    f"the column {field.name} has the type {field.type}, of which only files of one row group can be "
                    "read: write it with plain texts"
                )
        check_columns(names, self.text_column, self.answer_columns)
        if self.text_column in names and not _is_text(kind := schema.field(self.text_column).type):
            raise InputError(f"the column {self.text_column} has the type {kind}: it must have texts, lists or objects")

    def plan(self, part_rows: int) -> tuple[Part, ...]:
        with self._open() as file:
            metadata = file.metadata
        count = metadata.num_rows
        size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        rows = max(1, min(part_rows, PART_BYTES * count // max(size, 1)))
        # A file without rows has a part without any.
        starts = range(0, max(count, 1), rows)
        return tuple(
            Part(number, start, min(start + rows, count), min(rows, count - start), start + 1)
            for number, start in enumerate(starts)
        )

    def read_rows(self, part: Part) -> TableRows:
        try:
            table = pa.Table.from_batches(self._take(part.start, part.end), self._file.schema_arrow)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise InputError(f"the rows from {part.line} on cannot be read: {brief(error)}") from error
        return TableRows(table, self.text_column)

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return self._open()

    def _open(self) -> pq.ParquetFile:
        # Arrow's own error of a missing file names no reason apart.
        with open(self.path, "rb"):
            pass
        try:
            return pq.ParquetFile(self.path, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"the input is not Parquet: {brief(error)}") from error

    def _take(self, start: int, end: int) -> list[pa.RecordBatch]:
        """Consecutive rows."""
        self._go_to(start)
        taken = []
        while self._position < end:
            batch = next(self._batches) if self._rest is None else self._rest
            first, last = self._position, self._position + batch.num_rows
            if last > start:
                taken.append(batch.slice(max(start - first, 0), min(end, last) - max(start, first)))
            self._rest = batch.slice(end - first) if last > end else None
            self._position = min(last, end)
        return taken

    @cached_property
    def _group_ends(self) -> list[int]:
        """The row at which each group of rows ends."""
        metadata = self._file.metadata
        return [*accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))]

    def _go_to(self, row: int) -> None:
        """Read on from here, or from the start of the row's group."""
        ends = self._group_ends
        group = bisect_right(ends, row)
        first = ends[group - 1] if group else 0
        if not max(first, 1) <= self._position <= row:
            groups = list(range(group, len(ends)))
            self._batches = self._file.iter_batches(_READ_ROWS, row_groups=groups)
            self._rest = None
            self._position = first


def _read_text(record: Mapping[str, Any], text_column: str) -> TextInput | InputError:
    try:
        return read_text(record, text_column)
    except InputError as error:
        return error


def _empty_wrong(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
    """The table without values that cannot be read, such as text that is not UTF-8, and such a column of each row."""
    wrong: dict[int, str] = {}
    for position, name in enumerate(table.column_names):
        column = table.column(position)
        if _is_valid(column):
            continue
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        # A slice of lists still has the values of the others.
        valid = [_is_valid(column.take(pa.array([row]))) for row in range(len(column))]
        table = table.set_column(position, name, pc.if_else(pa.array(valid), column, None))
        wrong.update({row: name for row, is_valid in enumerate(valid) if not is_valid})
    return table, wrong


def _is_valid(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _to_records(table: pa.Table) -> list[dict[str, Any]]:
    """The rows, whose values are those of JSON, and bytes."""
    for position, field in enumerate(table.schema):
        if (kind := _simplify(field.type)) != field.type:
            # Arrow casts a slice of objects wrongly, so take a copy.
            copy = table.column(position).take(pa.array(range(table.num_rows), pa.int64()))
            table = table.set_column(position, field.name, _cast_to_texts(copy, kind))
    records: list[dict[str, Any]] = table.to_pylist()
    return records


def _cast_to_texts(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of the type that `_simplify` makes; times of a zone that this machine does not know are in UTC."""
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        return column.cast(_replace_leaves(column.type, _to_utc)).cast(kind)


def _to_utc(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit, "UTC") if pa.types.is_timestamp(kind) and kind.tz else kind


def _simplify(kind: pa.DataType) -> pa.DataType:
    """The type with texts for times and decimals: Python's types have a smaller range and fewer digits."""
    return _replace_leaves(kind, _to_string)


def _to_string(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_temporal(kind) or pa.types.is_decimal(kind) else kind


def _replace_leaves(kind: pa.DataType, replace: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """The type with others instead of those that have no types in them."""
    types = pa.types
    if types.is_dictionary(kind):
        return _replace_leaves(kind.value_type, replace)
    if types.is_map(kind):
        return pa.map_(_replace_leaves(kind.key_type, replace), _replace_leaves(kind.item_type, replace))
    if types.is_struct(kind):
        fields = _list_fields(kind)
        return pa.struct([field.with_type(_replace_leaves(field.type, replace)) for field in fields])
    if _is_list(kind):
        value = _replace_leaves(kind.value_type, replace)
        return kind if value == kind.value_type else pa.large_list(value)
    return replace(kind)


def _list_fields(kind: pa.DataType) -> list[pa.Field]:
    return [kind.field(position) for position in range(kind.num_fields)]


def _has_dictionary(kind: pa.DataType) -> bool:
    """Whether lists or objects of the type have dictionary-encoded values."""
    inner = [field.type for field in _list_fields(kind)]
    return any(pa.types.is_dictionary(each) or _has_dictionary(each) for each in inner)


def _check_fields(column: str, kind: pa.DataType) -> None:
    """
    Raises:
        InputError: an object in the column has two fields of one name.
    """
    names = [field.name for field in _list_fields(kind)]
    if pa.types.is_struct(kind) and (twice := find_twice(names)) is not None:
        raise InputError(f"the objects of the column {column} have two fields {twice!r}: rename one")
    for field in _list_fields(kind):
        _check_fields(column, field.type)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of the type may have texts, or lists or objects of them."""
    types = pa.types
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    is_string = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    # A column of nulls alone has no type.
    return is_string or types.is_null(kind) or types.is_struct(kind) or _is_list(kind)


def make_table(names: Sequence[str], records: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of records, which may lack columns."""
    if not names:
        return pa.table({"": pa.nulls(len(records))}).select([])
    return pa.table({name: _make_array([record.get(name) for record in records]) for name in names})


def add_answers(table: pa.Table, answers: Sequence[Answer], extra_names: Sequence[str]) -> pa.Table:
    """The table with the columns of answers: the prediction, others beside it, and the error."""
    columns = {PREDICTION: _make_predictions(answers)}
    for name in extra_names:
        values = [each.arrays[output_name(name)].tolist() if isinstance(each, Prediction) else None for each in answers]
        columns[name] = _make_array(values)
    errors = [str(each) if isinstance(each, InputError) else None for each in answers]
    columns[ERROR] = pa.array(errors, pa.string())
    if not table.num_columns:
        return pa.table(columns)
    for name, array in columns.items():
        table = table.append_column(name, array)
    return table


def _make_predictions(answers: Sequence[Answer]) -> pa.Array:
    """V1's predictions: lists of numbers of the arrays' type, texts of JSON, or what `_make_array` infers."""
    mains = [answer.main if isinstance(answer, Prediction) else None for answer in answers]
    found = next((main for main in mains if main is not None), None)
    match found:
        case Numbers(values):
            numbers = pa.from_numpy_dtype(values.dtype)
            for _ in range(values.ndim):
                numbers = pa.list_(numbers)
            arrays = [main.values if isinstance(main, Numbers) else None for main in mains]
            if values.ndim == 1:
                return pa.array(arrays, numbers)
            return pa.array([None if array is None else array.tolist() for array in arrays], numbers)
        case VocabularyScores():
            # An object for each entry of the vocabulary is no column.
            texts = [_render(each).decode() if isinstance(each, Prediction) else None for each in answers]
            return pa.array(texts, pa.string())
    rendered = [orjson.loads(_render(each)) if isinstance(each, Prediction) else None for each in answers]
    return _make_array(rendered)


def _render(prediction: Prediction) -> bytes:
    return dump_json(render_prediction(prediction))


def _make_array(values: Sequence[Any]) -> pa.Array:
    """Values of one type; if they are of several, texts."""
    try:
        array = pa.array(values)
    except (pa.ArrowException, OverflowError):
        return _to_texts(values)
    is_exact = _is_storable(array.type) and not any(_is_changed(array.type, value) for value in values)
    return array if is_exact else _to_texts(values)


def _is_changed(kind: pa.DataType, value: Any) -> bool:
    """Whether Arrow has made a truth value a number, as it does after a float."""
    if isinstance(value, bool):
        return bool(pa.types.is_floating(kind))
    if isinstance(value, dict):
        return any(_is_changed(field.type, value.get(field.name)) for field in _list_fields(kind))
    return isinstance(value, list) and any(_is_changed(kind.value_type, each) for each in value)


def _to_texts(values: Sequence[Any]) -> pa.Array:
    return pa.array([None if value is None else to_cell(value) for value in values], pa.string())


def _is_storable(kind: pa.DataType, levels: int = _MOST_LEVELS) -> bool:
    """Whether Parquet has the type: it has no objects without members, and not any number of levels."""
    if pa.types.is_struct(kind):
        fields = _list_fields(kind)
        return bool(fields) and levels > 0 and all(_is_storable(field.type, levels - 1) for field in fields)
    return not pa.types.is_list(kind) or (levels > 0 and _is_storable(kind.value_type, levels - 2))


def write_table(table: pa.Table, path: Path) -> None:
    pq.write_table(table, path)


def merge_tables(paths: Sequence[Path], target: Path) -> None:
    """Join files of parts, whose columns may differ, to one file."""
    schema = _unify(paths)
    with pq.ParquetWriter(target, schema) as writer:
        waiting: list[pa.Table] = []
        for path in paths:
            waiting.append(_fit(_read(path), schema))
            rows, size = sum(table.num_rows for table in waiting), sum(table.nbytes for table in waiting)
            if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))


def _read(path: Path) -> pa.Table:
    # `pq.read_table` would read columns in the names of folders.
    with pq.ParquetFile(path) as file:
        return file.read()


def _unify(paths: Sequence[Path]) -> pa.Schema:
    """The schema of all parts: a column whose values have no common type is text, and those of answers come last."""
    schemas = [pq.read_schema(path) for path in paths]
    found: dict[str, dict[pa.Field, None]] = {}
    for schema in schemas:
        for field in schema:
            found.setdefault(field.name, {})[field] = None
    fields = {name: _unify_fields(list(different)) for name, different in found.items()}
    for path, schema in zip(paths, schemas, strict=True):
        # Whether a type takes the values of another depends on them.
        if others := [field for field in schema if _needs_cast(field.type, fields[field.name].type)]:
            table = _read(path)
            for field in others:
                if not _can_cast(table[field.name], fields[field.name].type):
                    fields[field.name] = pa.field(field.name, pa.string())
    last = schemas[0].names[schemas[0].get_field_index(PREDICTION) :]
    names = [name for name in fields if name not in last] + last
    return pa.schema([fields[name] for name in names], schemas[0].metadata)


def _unify_fields(fields: Sequence[pa.Field]) -> pa.Field:
    try:
        [field] = pa.unify_schemas([pa.schema([field]) for field in fields], promote_options="permissive")
    except pa.ArrowException:
        return pa.field(fields[0].name, pa.string())
    return field.with_type(pa.string()) if pa.types.is_null(field.type) else field


def _needs_cast(kind: pa.DataType, target: pa.DataType) -> bool:
    return not (kind == target or pa.types.is_null(kind) or pa.types.is_string(target))


def _can_cast(column: pa.ChunkedArray, target: pa.DataType) -> bool:
    try:
        column.cast(target)
    except pa.ArrowException:
        return False
    return True


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    found = dict(zip(table.column_names, table.columns, strict=True))
    columns = {}
    for field in schema:
        if (column := found.get(field.name)) is None:
            columns[field.name] = pa.nulls(table.num_rows, field.type)
        elif column.type == field.type:
            columns[field.name] = column
        elif pa.types.is_string(field.type) and not pa.types.is_null(column.type):
            columns[field.name] = _to_texts([record[field.name] for record in _to_records(table.select([field.name]))])
        else:
            columns[field.name] = column.cast(field.type)
    return pa.table(columns, schema)
