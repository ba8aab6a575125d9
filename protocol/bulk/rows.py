"""Rows of a file, and the texts that they have."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import orjson

from protocol.http.body import convert_json
from protocol.kserve_v1.instances import AnyInstance, Instance, read_instance
from runners.core.errors import InputError, list_names
from runners.core.predictions import TextInput

if TYPE_CHECKING:
    import pyarrow as pa

PREDICTION, ERROR = "prediction", "error"
PAIR = "text_pair"
# Decodes bytes that are not UTF-8 so that they are found in their row, as Python decodes the command line.
KEEP_BYTES = "surrogateescape"
# Columns that make an instance together where there is no column of texts.
_OTHERS = (("question", "context"), ("words",))
# The columns beside that of the texts that may make an instance.
INSTANCE_COLUMNS = (PAIR, *chain.from_iterable(_OTHERS))


class Rows(ABC):
    """Consecutive rows of a file.

    Attributes:
        texts: the text of each row, or why it has none.
    """

    texts: Sequence[TextInput | InputError]

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The columns, of which a row may lack some."""

    def __len__(self) -> int:
        return len(self.texts)

    @abstractmethod
    def to_records(self) -> Sequence[Mapping[str, Any]]:
        """The columns of each row."""

    def to_json(self) -> list[bytes]:
        """Each row as a JSON object."""
        return [dump_json(record) for record in self.to_records()]

    def to_table(self) -> pa.Table:
        from protocol.bulk.arrow import make_table

        return make_table(self.names, self.to_records())


class RecordRows(Rows):
    """Rows that are in memory as records."""

    def __init__(
        self,
        records: Sequence[Mapping[str, Any]],
        texts: Sequence[TextInput | InputError],
        json: Sequence[bytes | None] = (),
        names: Sequence[str] = (),
    ) -> None:
        """
        Args:
            json: the rows as they stand in their file; None for one that is to be rendered.
            names: the columns of the file; none if they are those of the records.
        """
        self.texts = texts
        self._records = records
        self._json = json
        self._names = names

    @property
    def names(self) -> Sequence[str]:
        return self._names or tuple(dict.fromkeys(chain.from_iterable(self._records)))

    def to_records(self) -> Sequence[Mapping[str, Any]]:
        return self._records

    def list_lines(self) -> Sequence[bytes | None]:
        """The rows as they stand in their file; None for one that is to be rendered."""
        return self._json or [None] * len(self)

    def to_json(self) -> list[bytes]:
        return [
            dump_json(record) if line is None else line
            for line, record in zip(self.list_lines(), self._records, strict=True)
        ]


def join_rows(groups: Sequence[RecordRows]) -> RecordRows:
    """The rows of groups of one stream."""
    return RecordRows(
        [record for rows in groups for record in rows.to_records()],
        [text for rows in groups for text in rows.texts],
        [line for rows in groups for line in rows.list_lines()],
    )


def count_characters(text: TextInput) -> int:
    return len(text.text) + len(text.pair or "")


def list_answer_columns(extra_names: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns that answers have.

    Args:
        extra_names: those beside the prediction.
    """
    return (PREDICTION, *extra_names, ERROR)


def dump_json(value: Any) -> bytes:
    """A value of a row or a prediction as JSON; iterators and numpy arrays are lists."""
    return orjson.dumps(value, default=_convert, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def _convert(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case Iterable():
            return list(value)
    return str(value)


def to_cell(value: Any) -> str:
    """A value as a text of a table: a text is itself, nothing is empty, and anything else is JSON without quotes."""
    match value:
        case None:
            return ""
        case str():
            return value
        case float() if not isfinite(value):
            return str(value)
    json = dump_json(value)
    return str(orjson.loads(json)) if json.startswith(b'"') else json.decode()


def is_utf8(text: str) -> bool:
    """Whether a text that was decoded with `KEEP_BYTES` was UTF-8."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


def replace_bytes(text: str) -> str:
    """The text, with replacement characters where it was not UTF-8."""
    return text if is_utf8(text) else text.encode(errors=KEEP_BYTES).decode(errors="replace")


def read_text(record: Mapping[str, Any], text_column: str) -> TextInput:
    """The text of a row: V1's instance in the column of texts, or one that other columns make.

    Raises:
        InputError: the row has no such columns, or another value in them.
    """
    value = record.get(text_column)
    others = next((names for names in _OTHERS if all(name in record for name in names)), None)
    # A table has all columns in each row: an empty text is none beside the others.
    if value is not None and not (value == "" and others):
        pair = record.get(PAIR)
        if pair is not None and not (isinstance(value, str) and isinstance(pair, str)):
            raise InputError(f"{PAIR} and {text_column} must both be texts")
        return TextInput(value, pair) if isinstance(value, str) else _read_instance(value, text_column)
    if others is None:
        raise InputError(f"{text_column} is empty" if text_column in record else _describe_missing(record, text_column))
    if empty := [name for name in others if record[name] is None]:
        raise InputError(f"{list_names(empty)} {'is' if len(empty) == 1 else 'are'} empty")
    return _read_instance({name: record[name] for name in others}, " and ".join(others))


def _read_instance(value: Any, name: str) -> TextInput:
    if not isinstance(value, str | list | dict):
        raise InputError(f"{name} must be a text, a list of two texts, or an object")
    if isinstance(value, dict):
        # Parquet has every field of an object in all rows.
        value = convert_json({key: each for key, each in value.items() if each is not None}, Instance, name)
    elif isinstance(value, list):
        value = convert_json(value, list[str], name)
    return read_instance(cast("AnyInstance", value), name)


def claim_columns(text_column: str, extra_names: Sequence[str] = ()) -> tuple[str, ...]:
    """The columns that answers have, beside the column of texts.

    Args:
        extra_names: as for `list_answer_columns`.

    Raises:
        InputError: the column of texts is one of them.
    """
    answer_columns = list_answer_columns(extra_names)
    if text_column in answer_columns:
        raise InputError(
            f"--text_column={text_column}: the output has a column {text_column} of its own, as it has "
            f"{list_names([name for name in answer_columns if name != text_column])}: rename that of the texts"
        )
    return answer_columns


def check_names(names: Sequence[str]) -> None:
    """
    Raises:
        InputError: two columns have one name.
    """
    if (twice := find_twice(names)) is not None:
        raise InputError(f"the input has two columns {twice!r}: rename one")


def find_twice(names: Sequence[str]) -> str | None:
    """The first name that is there before."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def find_taken(columns: Collection[str], answer_columns: Collection[str]) -> str | None:
    """What is wrong with columns of which the answers have one."""
    name = next((name for name in answer_columns if name in columns), None)
    return name and f"has a column {name} already, which the output would have: rename it"


def check_columns(columns: Collection[str], text_column: str, answer_columns: Collection[str]) -> None:
    """Check the columns of a file, or of its first row.

    Args:
        answer_columns: the columns that the job adds.

    Raises:
        InputError: there is no column of texts, or one that the job would write.
    """
    if taken := find_taken(columns, answer_columns):
        raise InputError(f"the input {taken}")
    if text_column not in columns and not any({*names} <= {*columns} for names in _OTHERS):
        raise InputError(_describe_missing(columns, text_column))


def _describe_missing(columns: Iterable[str], text_column: str) -> str:
    names = [str(name) for name in columns]
    near = next((name for name in names if name.strip().casefold() == text_column.strip().casefold()), None)
    advice = "" if near is None else f"; did you mean --text_column={near!r}?"
    there = list_names(names) or "none"
    return f"there is no column {text_column}, and no question and context, or words; the columns are: {there}{advice}"
