"""Records of predictions as JSON objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runners.core.predictions import Records


def list_records(records: Records, names: Mapping[str, str] | None = None) -> Any:
    """An object for each record, nested as the columns are: an object, an iterator of objects, or one of iterators.

    Args:
        names: the names of columns that are called otherwise in the answer.
    """
    renamed = names or {}
    return _nest({renamed.get(name, name): column.tolist() for name, column in records.columns.items()})


def _nest(columns: Mapping[str, Any]) -> Any:
    values = list(columns.values())
    if not isinstance(values[0], list):
        return columns
    return (_nest(dict(zip(columns, row, strict=True))) for row in zip(*values, strict=True))
