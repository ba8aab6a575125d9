"""Formats of files by the endings of their names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec
from pathlib import Path

from protocol.bulk.csv_source import CsvSource
from protocol.bulk.lines import JsonLines, TextLines
from protocol.bulk.outputs import CsvOutput, JsonOutput, Output, ParquetOutput
from protocol.bulk.source import Source
from runners.core.errors import InputError

_PARQUET = ".parquet"
_SOURCES: dict[str, type[Source]] = {".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": CsvSource, ".txt": TextLines}
_OUTPUTS: dict[str, type[Output]] = {
    ".jsonl": JsonOutput,
    ".ndjson": JsonOutput,
    ".csv": CsvOutput,
    _PARQUET: ParquetOutput,
}
_EXTRA = "pip install 'bentoml-huggingface-runtime[bulk]'"


def open_source(path: Path, text_column: str, answer_columns: Collection[str]) -> Source:
    """
    Args:
        answer_columns: the columns that the job adds.

    Raises:
        InputError: the name has another ending, the package of its format is not installed, or it is a pipe.
    """
    ending = _check_ending(path, "input", (*_SOURCES, _PARQUET))
    if path.is_fifo():
        raise InputError(f"--input={path} is a pipe, which cannot be read in parts: use --input=- < {path}")
    if ending == _PARQUET:
        from protocol.bulk.arrow import ParquetSource

        return ParquetSource(path, text_column, answer_columns)
    return _SOURCES[ending](path, text_column, answer_columns)


def open_output(path: Path, extra_names: Sequence[str] = ()) -> Output:
    """
    Raises:
        InputError: the name has another ending, or the package of its format is not installed.
    """
    return _OUTPUTS[_check_ending(path, "output", _OUTPUTS)](extra_names)


def _check_ending(path: Path, what: str, endings: Collection[str]) -> str:
    ending = path.suffix.lower()
    if ending not in endings:
        raise InputError(f"--{what}={path}: its name must end with {', '.join(endings)}, or be - for a stream")
    if ending == _PARQUET and find_spec("pyarrow") is None:
        raise InputError(f"--{what}={path} needs the package pyarrow: {_EXTRA}")
    return ending
