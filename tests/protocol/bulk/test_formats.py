"""Files are read in parts as at once, whatever is in them, and answers keep the columns of each format."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.bulk.formats import open_output, open_source
from protocol.bulk.rows import list_answer_columns
from runners.core.errors import InputError
from runners.core.predictions import TextInput
from tests.protocol.bulk.files import answer_file, read_file

TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
LINES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"text": TEXTS}, optional={"id": st.integers(-9, 9), "é": TEXTS}).map(json.dumps),
        TEXTS.map(json.dumps),
        st.sampled_from(["", "  ", "{", '{"text": 5}', "[1]", '{"other": 1}']),
    ).map(str.encode)
    | st.just(b'{"text": "\xff"}'),
    max_size=20,
)
ENDS = st.sampled_from([b"\n", b"\r\n"])
in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@in_a_folder
@given(lines=LINES, end=ENDS, ends=st.booleans(), bom=st.booleans(), part_rows=st.integers(1, 5))
def test_json_lines_in_parts(
    lines: list[bytes], end: bytes, ends: bool, bom: bool, part_rows: int, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" * bom + b'{"text": "first"}' + end + end.join(lines) + end * ends)
    found = read_file(path, part_rows)
    assert found == read_file(path, 1000)
    assert len(found) == 1 + sum(bool(line.strip()) for line in lines)


@in_a_folder
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=20), end=st.sampled_from(["\n", "\r\n"]), ends=st.booleans(),
    bom=st.booleans(), part_rows=st.integers(1, 5),
)  # fmt: skip
def test_csv_in_parts(
    rows: list[tuple[str, str]], end: str, ends: bool, bom: bool, part_rows: int, tmp_path: Path
) -> None:
    path, buffer = tmp_path / "a.csv", StringIO(newline="")
    # Before Python 3.13 `csv` quotes only the ends of its own rows.
    writer = csv.writer(buffer, lineterminator=end, quoting=csv.QUOTE_MINIMAL if end == "\r\n" else csv.QUOTE_ALL)
    writer.writerows([("text", "id"), *rows])
    content = buffer.getvalue()
    path.write_text("\ufeff" * bom + (content if ends else content.removesuffix(end)), "utf-8", newline="")
    found = read_file(path, part_rows)
    assert found == read_file(path, 1000)
    assert [(record["text"], record["id"]) for record, _ in found] == rows
    assert [text for _, text in found] == [TextInput(text) for text, _ in rows]


@in_a_folder
@given(lines=st.lists(st.binary(max_size=8), max_size=20), part_rows=st.integers(1, 5))
def test_any_bytes_of_csv(lines: list[bytes], part_rows: int, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,id\n" + b"\n".join(lines))

    def read(part_rows: int) -> object:
        try:
            return read_file(path, part_rows)
        except InputError as error:
            # A quote may never be closed.
            return str(error)

    assert read(part_rows) == read(1000)


@in_a_folder
@given(
    texts=st.lists(TEXTS | st.none(), max_size=30), groups=st.integers(1, 9), part_rows=st.integers(1, 7),
    start=st.integers(0, 40),
)  # fmt: skip
def test_parquet_in_parts(texts: list[str | None], groups: int, part_rows: int, start: int, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "id": pa.array(range(len(texts)))}), path, groups)
    found = read_file(path, part_rows)
    assert found == read_file(path, 1000)
    assert [record["text"] for record, _ in found] == texts
    # A part is read alone, too, and before those that come before it.
    source = open_source(path, "text", list_answer_columns())
    parts = source.plan(part_rows)
    for part in (*parts[start % len(parts) :], *parts):
        assert [record["id"] for record in source.read(part).to_records()] == [*range(part.start, part.end)]


def test_many_parts_of_one_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(row) for row in range(3_000)]}), path)
    assert [record["text"] for record, _ in read_file(path, 1)] == [str(row) for row in range(3_000)]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"{", "line 3 is not JSON: unexpected end of data at column 2"),
        (b'{"text": "\xff"}', "line 3 is not UTF-8"),
        (b'{"text": 5}', "line 3: text must be a text"),
        (b"5", "line 3: text must be a text"),
        (b'{"other": 1}', "line 3: there is no column text"),
        (
            b'{"text": "a", "predict\\u0069on": 1}',
            "line 3 has a column prediction already, which the output would have: rename it",
        ),
    ],
)
def test_a_wrong_line_of_json(line: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n' + line + b'\n{"text": "b"}\n')
    found = [text for _, text in read_file(path, 2)]
    assert (found[0], found[2]) == (TextInput("a"), TextInput("b"))
    assert str(found[1]).startswith(error)


@pytest.mark.parametrize(
    ("line", "record", "error"),
    [
        (b"a", {"text": "a"}, "line 4 has 1 fields, and the first row has 2"),
        (
            b"a,1,2",
            {"text": "a", "id": "1"},
            "line 4 has 3 fields, and the first row has 2: the output lacks the last 1",
        ),
        (
            b"a,1,2,3",
            {"text": "a", "id": "1"},
            "line 4 has 4 fields, and the first row has 2: the output lacks the last 2",
        ),
        (b"a,\rb", {}, "line 4 is not CSV: it has a carriage return that is not in quotes"),
        (b"\xff,1", {"text": "\ufffd", "id": "1"}, "line 4 is not UTF-8"),
    ],
)
def test_a_wrong_row_of_csv(line: bytes, record: dict[str, str], error: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,id\n"a\nb",1\n' + line + b"\nc,3\n")
    assert read_file(path, 2) == [
        ({"text": "a\nb", "id": "1"}, TextInput("a\nb")),
        (record, error),
        ({"text": "c", "id": "3"}, TextInput("c")),
    ]


def test_plain_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b'\xef\xbb\xbfa "text"\r\n\r\n\xff\n{"b": 1}')
    assert read_file(path, 1, "body") == [
        ({"body": 'a "text"'}, TextInput('a "text"')),
        ({"body": "\ufffd"}, "line 3 is not UTF-8"),
        ({"body": '{"b": 1}'}, TextInput('{"b": 1}')),
    ]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.jsonl", b'{"text": "a", "error": 1}', "the input has a column error already, which the output would have"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "a", "prediction": 1}', "line 2 has a column prediction already"),
        ("a.jsonl", b'{"body": "a"}', "there is no column text, and no question and context, or words; the columns are: body"),
        ("a.jsonl", "a".encode("utf-16"), "the input is UTF-16 or UTF-32: convert it to UTF-8"),
        ("a.txt", "a".encode("utf-32"), "the input is UTF-16 or UTF-32: convert it to UTF-8"),
        ("a.jsonl", b'{"text": "\xe9"}', "line 1 is not UTF-8: JSON lines have a value on each line, in UTF-8"),
        ("a.jsonl", b'\n[\n {"text": "a"}\n]', "line 2 is not JSON: .* at column .*: JSON lines have a value on each line"),
        ("a.jsonl", b'[{"text": "a"}, {"text": "b"}]', "line 1 is a list of objects: JSON lines have each on a line of its own"),
        ("a.jsonl", b"text,id\na,1\n", "line 1 is not JSON"),
        ("a.csv", b"id,prediction,text\n", "the input has a column prediction already"),
        ("a.csv", b"id;text\n1;a\n", "the input has one column, 'id;text': separate columns by commas, not by ';'"),
        ("a.csv", b"words,id\na,1\n", "the column words has lists, which CSV does not have: use JSON lines or Parquet"),
        ("a.csv", b"text,text\n", "the input has two columns 'text': rename one"),
        ("a.csv", b"\n", "the input is empty: its first row must have the names of the columns"),
        ("a.csv", b"\xff\n", "the first row of the input is not UTF-8"),
        ("a.csv", b"text,id\ra,1\r", "the first row of the input is not CSV: its lines must end with LF, or with CR and LF"),
        ("a.csv", b'text,id\na,1\n"b,2\nc,3\n', "a quote in the row of line 3 is never closed"),
        ("a.csv", b'"text,id\na,1\n', "a quote in the row of line 1 is never closed"),
        ("a.parquet", b"PAR0", "the input is not Parquet: "),
        ("a.json", b"[]", r"--input=.*a.json: its name must end with .jsonl, .ndjson, .csv, .txt, .parquet, or be - for"),
        ("a.jsonl.gz", b"", "its name must end with"),
    ],
)  # fmt: skip
def test_a_wrong_file(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=error):
        read_file(path, 1000)


def test_a_line_of_another_format_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.bulk.lines.LONGEST_LINE", 2**20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + b"[" * 2**21)
    with pytest.raises(InputError, match="line 2 has more than 1 MiB: this is no file of lines"):
        read_file(path, 1000)


def test_a_quote_that_is_never_closed_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.bulk.csv_source.LONGEST_LINE", 2**20)
    path = tmp_path / "a.csv"
    path.write_bytes(b'text\na\n"' + b"b\n" * 2**20)
    with pytest.raises(InputError, match="the row of line 3 has more than 1 MiB: a quote in it is never closed"):
        read_file(path, 1000)


ROWS: list[dict[str, Any]] = [
    {"text": "a", "id": 1, "tags": ["x"], "more": {"b": 1}},
    {"text": "é\r,\n\"", "id": None, "tags": [], "more": {"c": 0.5}},
    {"text": "c", "id": 3, "tags": ["y", "z"], "more": {}},
    {"text": "d", "id": "four", "extra": True},
]  # fmt: skip


def write_json(path: Path) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "id"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.table({"text": [row["text"] for row in ROWS], "id": pa.array([1, None, 3, 4], pa.int8())}), path)


@pytest.mark.parametrize(
    ("name", "write"), [("in.jsonl", write_json), ("in.csv", write_csv), ("in.parquet", write_parquet)]
)
@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "csv", "parquet"])
@pytest.mark.parametrize("part_rows", [1, 3, 100])
def test_each_format_to_each(
    name: str, write: Callable[[Path], None], ending: str, part_rows: int, tmp_path: Path
) -> None:
    source, target = tmp_path / name, tmp_path / f"out.{ending}"
    write(source)
    answer_file(source, target, part_rows)
    if ending == "parquet":
        answered = pq.read_table(target).to_pylist()
    elif ending == "csv":
        with target.open(newline="") as file:
            answered = list(csv.DictReader(file))
    else:
        answered = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["text"], row["prediction"]) for row in answered] == [
        (row["text"], row["text"].upper()) for row in ROWS
    ]
    assert [row.get("error") or None for row in answered] == [None] * len(ROWS)


@pytest.mark.parametrize("part_rows", [1, 3, 100])
def test_types_in_parquet(part_rows: int, tmp_path: Path) -> None:
    write_json(tmp_path / "in.jsonl")
    answer_file(tmp_path / "in.jsonl", tmp_path / "out.parquet", part_rows)
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.names == ["text", "id", "tags", "more", "extra", "prediction", "error"]
    assert table.schema.field("tags").type == pa.list_(pa.string())
    assert table.schema.field("extra").type == pa.bool_()
    # Of several types: texts, and JSON of the others.
    assert table["id"].to_pylist() == ["1", None, "3", "four"]
    assert table.schema.field("error").type == pa.string()


def test_the_types_of_a_parquet_file_stay(tmp_path: Path) -> None:
    kinds = {"text": pa.large_string(), "at": pa.timestamp("ms", "UTC"), "code": pa.dictionary(pa.int8(), pa.string())}
    table = pa.table({"text": ["a", "b"], "at": [1, 2], "code": ["x", None]}, pa.schema(kinds.items()))
    pq.write_table(table, tmp_path / "in.parquet")
    answer_file(tmp_path / "in.parquet", tmp_path / "out.parquet", 1)
    assert pq.read_table(tmp_path / "out.parquet").select(list(kinds)).equals(table)


def test_json_keeps_the_columns_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(
        b'{ "id": 1.0, "n": 123456789012345678901234567890, "text":"\\u00e9" }\n{"text":5}\n{\n'
    )
    answer_file(tmp_path / "in.jsonl", tmp_path / "out.jsonl", 1)
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert lines[0] == b'{ "id": 1.0, "n": 123456789012345678901234567890, "text":"\\u00e9","prediction":"\xc3\x89"}'
    assert lines[1] == b'{"text":5,"error":"line 2: text must be a text, a list of two texts, or an object"}'
    assert lines[2].startswith(b'{"error":"line 3 is not JSON: ')


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_no_rows(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(b"\n")
    answer_file(tmp_path / "in.jsonl", tmp_path / f"out.{ending}", 1)
    if ending == "parquet":
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    else:
        assert (tmp_path / f"out.{ending}").read_text() == {"jsonl": "", "csv": "prediction,error\n"}[ending]


def test_the_endings_of_an_output() -> None:
    with pytest.raises(
        InputError, match=r"--output=a.txt: its name must end with .jsonl, .ndjson, .csv, .parquet, or be -"
    ):
        open_output(Path("a.txt"))


def test_parquet_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.bulk.formats.find_spec", lambda _: None)
    with pytest.raises(InputError) as raised:
        open_output(Path("a.parquet"))
    assert str(raised.value) == (
        "--output=a.parquet needs the package pyarrow: pip install 'bentoml-huggingface-runtime[bulk]'"
    )


def test_a_pipe_with_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"a.jsonl is a pipe, which cannot be read in parts: use --input=- < "):
        open_source(tmp_path / "a.jsonl", "text", list_answer_columns())
