"""Files of rows, and what is read from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocol.bulk.formats import open_output, open_source
from protocol.bulk.rows import list_answer_columns
from protocol.bulk.text_answerer import Answer
from runners.core.errors import InputError
from runners.core.predictions import MAIN, Prediction, Text, TextInput

Read = tuple[Mapping[str, Any], TextInput | str]


def read_file(path: Path, part_rows: int, text_column: str = "text") -> list[Read]:
    """Each row of a file that is read in parts: its columns, and its text or its error."""
    source = open_source(path, text_column, list_answer_columns())
    source.check_start()
    parts = source.plan(part_rows)
    assert all(part.rows <= part_rows for part in parts)
    found: list[Read] = []
    for part in parts:
        rows = source.read(part)
        assert len(rows) == part.rows
        found += [
            (record, str(text) if isinstance(text, InputError) else text)
            for record, text in zip(rows.to_records(), rows.texts, strict=True)
        ]
    return found


def upper(texts: Sequence[TextInput | InputError]) -> list[Answer]:
    """The answers of a model that writes in capitals."""
    return [text if isinstance(text, InputError) else Prediction({MAIN: Text(text.text.upper())}) for text in texts]


def answer_file(source_path: Path, target: Path, part_rows: int) -> None:
    """Answer a file in parts, and join them."""
    source, output = open_source(source_path, "text", list_answer_columns()), open_output(target)
    paths = []
    for part in source.plan(part_rows):
        rows = source.read(part)
        paths.append(target.with_name(f"{part.number}-{target.name}"))
        output.write(paths[-1], rows, upper(rows.texts))
    output.merge(paths, target)
