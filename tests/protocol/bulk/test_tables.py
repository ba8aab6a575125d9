"""Any table goes through every pair of formats: a row of the output for each of the input, with the same values."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.bulk.arrow import make_table
from protocol.bulk.formats import open_source
from protocol.bulk.rows import list_answer_columns
from runners.core.errors import InputError
from tests.protocol.bulk.files import answer_file

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
NAMES = TEXTS.filter(lambda name: name not in ("text", "text_pair", "prediction", "error"))
NUMBERS = (
    st.integers(-(2**63), 2**64 - 1)
    | st.sampled_from([2**53 + 1, -1, 0])
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
# Records share columns, whose values are of one kind more often than not.
RECORDS = NAMES.flatmap(
    lambda name: st.lists(
        st.fixed_dictionaries(
            {"text": TEXTS}, optional={name: NUMBERS, "a.b": VALUES, "é": TEXTS, "\r": st.lists(NUMBERS)}
        ),
        min_size=1,
        max_size=8,
    )
)
ENDINGS = ["jsonl", "csv", "parquet"]
PARTS = st.integers(1, 9)
in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)

Record = Mapping[str, Any]


def write_json(path: Path, records: Sequence[Record]) -> None:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))


def write_csv(path: Path, records: Sequence[Record]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, dict.fromkeys(name for record in records for name in record), quoting=csv.QUOTE_ALL
        )
        writer.writeheader()
        writer.writerows(
            {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items() if value is not None}
            for record in records
        )  # fmt: skip


def write_parquet(path: Path, records: Sequence[Record]) -> None:
    names = [*dict.fromkeys(name for record in records for name in record)]
    pq.write_table(make_table(names, records), path)


WRITE = {"jsonl": write_json, "csv": write_csv, "parquet": write_parquet}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, as other programs read them."""
    match path.suffix:
        case ".parquet":
            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return rows
        case ".csv":
            csv.field_size_limit(2**30)
            with path.open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def is_same(value: Any, found: Any) -> bool:
    """Whether a value was found as itself or as its JSON; Arrow's objects have all members of their column."""
    if value is None:
        return found in (None, "")
    if not isinstance(value, str) and isinstance(found, str):
        found = json.loads(found)
    return bool(drop_nulls(value) == drop_nulls(found))


def drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: drop_nulls(each) for name, each in value.items() if each is not None}
    return [drop_nulls(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("target", ENDINGS)
@pytest.mark.parametrize("source", ENDINGS)
@in_a_folder
@given(records=RECORDS, part_rows=PARTS)
def test_any_table(source: str, target: str, records: list[Record], part_rows: int, tmp_path: Path) -> None:
    WRITE[source](tmp_path / f"in.{source}", records)
    answer_file(tmp_path / f"in.{source}", tmp_path / f"out.{target}", part_rows)
    rows = read_rows(tmp_path / f"out.{target}")
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert {*row} >= {*record, "prediction"}
        assert all(is_same(value, row[name]) for name, value in record.items())
        assert (row["prediction"], row.get("error") or None) == (record["text"].upper(), None)


LINES = st.lists(
    st.dictionaries(NAMES, VALUES).map(lambda record: json.dumps({"text": "a", **record}).encode())
    | VALUES.map(lambda value: json.dumps({"text": value}).encode())
    # A column of the output's is refused: test_formats.py.
    | VALUES.filter(lambda value: not (isinstance(value, dict) and {"prediction", "error"} & {*value})).map(
        lambda value: json.dumps(value).encode()
    )
    | st.binary(min_size=1, max_size=8).filter(lambda line: b"\n" not in line and bool(line.strip())),
    max_size=8,
)  # fmt: skip


@pytest.mark.parametrize("target", ENDINGS)
@in_a_folder
@given(lines=LINES, part_rows=PARTS)
def test_any_lines(target: str, lines: list[bytes], part_rows: int, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\n".join(lines))
    answer_file(tmp_path / "in.jsonl", tmp_path / f"out.{target}", part_rows)
    rows = read_rows(tmp_path / f"out.{target}")
    assert len(rows) == len(lines)
    assert not any(row.get("prediction") and row.get("error") for row in rows)


@pytest.mark.parametrize("target", ENDINGS)
@in_a_folder
@given(
    columns=st.lists(NAMES, min_size=1, max_size=3, unique=True),
    rows=st.lists(st.lists(TEXTS | st.just("x" * 200_000), min_size=1, max_size=5), max_size=8), part_rows=PARTS,
)  # fmt: skip
def test_any_csv(target: str, columns: list[str], rows: list[list[str]], part_rows: int, tmp_path: Path) -> None:
    with (tmp_path / "in.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([["text", *columns], *rows])
    answer_file(tmp_path / "in.csv", tmp_path / f"out.{target}", part_rows)
    found = read_rows(tmp_path / f"out.{target}")
    assert len(found) == len(rows)
    for row, record in zip(rows, found, strict=True):
        assert [record[name] for name, _ in zip(["text", *columns], row, strict=False)] == row[: 1 + len(columns)]
        assert bool(record.get("error")) is (len(row) != 1 + len(columns))


# Each type with the values of integers, and what JSON and CSV have of the first: texts have all digits and any year.
TYPES: list[tuple[pa.DataType, Any, str]] = [
    (pa.int8(), 7, "7"),
    (pa.uint64(), 7, "7"),
    (pa.float16(), 7.0, "7.0"),
    (pa.float64(), 7.0, "7.0"),
    (pa.timestamp("ms"), "1970-01-01 00:00:00.007", "1970-01-01 00:00:00.007"),
    (pa.timestamp("ns", "UTC"), "1970-01-01 00:00:00.000000007Z", "1970-01-01 00:00:00.000000007Z"),
    (pa.timestamp("us", "Asia/Tokyo"), "1970-01-01 09:00:00.000007+0900", "1970-01-01 09:00:00.000007+0900"),
    (pa.date32(), "1970-01-08", "1970-01-08"),
    (pa.time64("ns"), "00:00:00.000000007", "00:00:00.000000007"),
    (pa.duration("ns"), "7", "7"),
    (pa.decimal128(30, 2), "7.00", "7.00"),
    (pa.list_(pa.timestamp("ms")), ["1970-01-01 00:00:00.007"], '["1970-01-01 00:00:00.007"]'),
    (pa.list_(pa.int8(), 1), [7], "[7]"),
    (pa.struct([("a", pa.date32()), ("b", pa.int8())]), {"a": "1970-01-08", "b": None}, '{"a":"1970-01-08","b":null}'),
    (pa.map_(pa.string(), pa.decimal128(30, 1)), [["a", "7.0"]], '[["a","7.0"]]'),
    (pa.binary(), "Bw==", "Bw=="),
    (pa.null(), None, ""),
]


def make_column(numbers: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Numbers as values of a type."""
    types = pa.types
    if types.is_null(kind):
        return pa.nulls(len(numbers))
    if types.is_binary(kind):
        return pa.array([None if number is None else number.to_bytes() for number in numbers], kind)
    if types.is_list(kind) or types.is_fixed_size_list(kind):
        inner = make_column(numbers, kind.value_type).cast(pa.int64()) if types.is_integer(kind.value_type) else None
        values = make_column(numbers, kind.value_type) if inner is None else inner
        return pa.ListArray.from_arrays(pa.array(range(len(numbers) + 1), pa.int32()), values).cast(kind)
    if types.is_struct(kind):
        first = make_column(numbers, kind.field(0).type)
        return pa.StructArray.from_arrays([first, pa.nulls(len(numbers), kind.field(1).type)], fields=list(kind))
    if types.is_map(kind):
        offsets = pa.array(range(len(numbers) + 1), pa.int32())
        return pa.MapArray.from_arrays(offsets, pa.array(["a"] * len(numbers)), make_column(numbers, kind.item_type))
    whole = pa.array(numbers, pa.int32() if kind.bit_width == 32 else pa.int64())
    return whole.cast(kind)


@pytest.mark.parametrize(("kind", "value", "cell"), TYPES, ids=str)
@pytest.mark.parametrize("part_rows", [1, 2, 9])
def test_types_of_parquet(kind: pa.DataType, value: object, cell: str, part_rows: int, tmp_path: Path) -> None:
    column = make_column([7, None, 7], kind)
    table = pa.table({"text": ["a", "b", "c"], "id": column})
    pq.write_table(table, tmp_path / "in.parquet")
    for ending in ENDINGS:
        answer_file(tmp_path / "in.parquet", tmp_path / f"out.{ending}", part_rows)
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")][::2] == [value, value]
    assert [row["id"] for row in read_rows(tmp_path / "out.csv")][::2] == [cell, cell]
    if not pa.types.is_null(kind):
        assert pq.read_table(tmp_path / "out.parquet").select(["text", "id"]).equals(table)


@pytest.mark.parametrize(
    "kind", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.date32(), pa.list_(pa.timestamp("ms"))]
)
@pytest.mark.parametrize("ending", ENDINGS)
def test_times_beyond_those_of_python(kind: pa.DataType, ending: str, tmp_path: Path) -> None:
    column = make_column([2**31 - 1 if pa.types.is_date32(kind) else 2**62], kind)
    pq.write_table(pa.table({"text": ["a"], "id": column}), tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / f"out.{ending}", 1)


def make_texts(values: Sequence[bytes]) -> pa.Array:
    """Texts of any bytes."""
    _, offsets, data = pa.array(values, pa.binary()).buffers()
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, data])


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("part_rows", [1, 2, 9])
@pytest.mark.parametrize("name", ["text", "id", "tags", "code"])
def test_parquet_that_is_not_utf8(name: str, part_rows: int, ending: str, tmp_path: Path) -> None:
    wrong, good = make_texts([b"a", b"\xff", b"c"]), pa.array(["a", "b", "c"])
    table = pa.table({"text": good, "id": good, "tags": pa.ListArray.from_arrays([0, 1, 2, 3], good), "code": good})
    changed = {"tags": pa.ListArray.from_arrays([0, 1, 2, 3], wrong), "code": wrong.dictionary_encode()}.get(
        name, wrong
    )
    table = table.set_column(table.column_names.index(name), name, changed)
    pq.write_table(table, tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / f"out.{ending}", part_rows)
    rows = read_rows(tmp_path / f"out.{ending}")
    assert [row.get("prediction") or None for row in rows] == ["A", None, "C"]
    assert rows[1]["error"] == f"{name} is not UTF-8, or damaged"
    assert not rows[1][name]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("start", ["[", '{"text": [', '{"text": "a", "id": [', '{"text": "a", "id": {"a": ['])
@pytest.mark.parametrize("levels", [40, 90, 250, 1000])
def test_many_levels(levels: int, start: str, ending: str, tmp_path: Path) -> None:
    line = (
        start
        + "[" * levels
        + "1"
        + "]" * levels
        + start.translate({ord("["): "]", ord("{"): "}"})[::-1].translate({ord(char): None for char in '"textaid:, '})
    )
    (tmp_path / "in.jsonl").write_text(f'{line}\n{{"text": "b"}}\n')
    answer_file(tmp_path / "in.jsonl", tmp_path / f"out.{ending}", 9)
    first, second = read_rows(tmp_path / f"out.{ending}")
    assert second["prediction"] == "B"
    if levels > 100:
        assert first["error"].startswith("line 1 ")


def test_the_schema_of_a_parquet_file_stays(tmp_path: Path) -> None:
    schema = pa.schema(
        [pa.field("text", pa.string(), nullable=False), pa.field("id", pa.int8(), metadata={"unit": "m"})],
        {"pandas": "{}", "own": "1"},
    )
    pq.write_table(pa.table({"text": ["a", "b"], "id": [1, 2]}, schema), tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / "out.parquet", 1)
    found = pq.read_schema(tmp_path / "out.parquet")
    assert found.metadata[b"own"] == b"1"
    assert [found.field(name).nullable for name in schema.names] == [False, True]
    assert found.field("id").metadata[b"unit"] == b"m"


@pytest.mark.parametrize(
    ("kind", "error"),
    [(pa.int64(), "the column text has the type int64: it must have texts"), (pa.binary(), "has the type binary"), (pa.null(), None)],
)  # fmt: skip
def test_the_type_of_the_texts(kind: pa.DataType, error: str | None, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.nulls(2, kind)}), tmp_path / "in.parquet")
    with pytest.raises(InputError, match=error) if error else nullcontext():
        open_source(tmp_path / "in.parquet", "text", list_answer_columns()).check_start()


@pytest.mark.parametrize("part_rows", [1, 9])
@pytest.mark.parametrize(
    ("first", "second"),
    [("1.5", "true"), ("[0.5]", "[true]"), ('{"a": 0.5}', '{"a": false}'), ("1", "true"), ("true", "1.5")],
)
def test_truth_values_are_no_numbers(first: str, second: str, part_rows: int, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(f'{{"text": "a", "v": {first}}}\n{{"text": "b", "v": {second}}}\n')
    answer_file(tmp_path / "in.jsonl", tmp_path / "out.parquet", part_rows)
    assert [json.loads(row["v"]) for row in read_rows(tmp_path / "out.parquet")] == [
        json.loads(first),
        json.loads(second),
    ]


@pytest.mark.parametrize("ending", ENDINGS)
def test_no_rows_of_any_type(ending: str, tmp_path: Path) -> None:
    kinds = [
        pa.date32(),
        pa.time64("us"),
        pa.timestamp("ns", "UTC"),
        pa.duration("s"),
        pa.decimal128(5, 2),
        pa.binary(),
    ]
    columns = {f"c{position}": pa.array([], kind) for position, kind in enumerate(kinds)}
    pq.write_table(pa.table({"text": pa.array([], pa.string()), **columns}), tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / f"out.{ending}", 9)
    assert read_rows(tmp_path / f"out.{ending}") == []


def test_lists_of_encoded_texts(tmp_path: Path) -> None:
    """Arrow reads them from one row group only."""
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 1]), pa.array(["x", "y"]))
    table = pa.table({"text": ["a", "b"], "tags": pa.ListArray.from_arrays([0, 2, 4], codes)})
    pq.write_table(table, tmp_path / "in.parquet", 1)
    with pytest.raises(
        InputError, match=r"the column tags has the type list<.*>, of which only files of one row group"
    ):
        open_source(tmp_path / "in.parquet", "text", list_answer_columns()).check_start()
    pq.write_table(table, tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / "out.jsonl", 1)
    assert [row["tags"] for row in read_rows(tmp_path / "out.jsonl")] == [["x", "y"]] * 2


def test_objects_with_two_fields_of_one_name(tmp_path: Path) -> None:
    inner = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    table = pa.table({"text": ["a"], "tags": pa.ListArray.from_arrays([0, 1], inner)})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match="the objects of the column tags have two fields 'x': rename one"):
        open_source(tmp_path / "in.parquet", "text", list_answer_columns()).check_start()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_times_of_an_unknown_zone_are_in_utc(ending: str, tmp_path: Path) -> None:
    """As on a machine that has no database of zones."""
    times = pa.array([0, None], pa.timestamp("s", "Nowhere/City"))
    table = pa.table({"text": ["a", "b"], "at": times, "log": pa.ListArray.from_arrays([0, 1, 2], times)})
    pq.write_table(table, tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / f"out.{ending}", 9)
    first, second = read_rows(tmp_path / f"out.{ending}")
    assert first["at"] == "1970-01-01 00:00:00.000Z"
    assert "1970-01-01 00:00:00.000Z" in first["log"]
    assert not second["at"]


@pytest.mark.parametrize("source", ["csv", "parquet"])
@pytest.mark.parametrize("target", ENDINGS)
def test_columns_without_rows(source: str, target: str, tmp_path: Path) -> None:
    if source == "csv":
        (tmp_path / "in.csv").write_text("id,text\n")
    else:
        pq.write_table(
            pa.table({"id": pa.array([], pa.int8()), "text": pa.array([], pa.string())}), tmp_path / "in.parquet"
        )
    answer_file(tmp_path / f"in.{source}", tmp_path / f"out.{target}", 1)
    content = tmp_path / f"out.{target}"
    if target == "parquet":
        assert pq.read_schema(content).names == ["id", "text", "prediction", "error"]
    else:
        assert content.read_text() == {"csv": "id,text,prediction,error\n", "jsonl": ""}[target]
