"""Files that come with a model, in its folder or on the hub; imports neither torch nor, on its own, `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError


def load_json(arguments: Arguments, filename: str) -> Any | None:
    """Parse a JSON file that comes with the model; None where it has none.

    Raises:
        ModelLoadError: it is no JSON.
    """
    path = find_file(arguments, filename)
    return None if path is None else parse_json(arguments, path, filename)


def find_file(arguments: Arguments, filename: str) -> Path | None:
    """A file that comes with the model, fetched from the hub if need be; None where it has none."""
    # Takes seconds to import.
    from transformers.utils.hub import cached_file

    path = cached_file(
        arguments.model,
        filename,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def parse_json(arguments: Arguments, path: Path, filename: str) -> Any:
    """Parse a JSON file of the model.

    Args:
        path: where it lies.
        filename: what it is called in the model's folder or repository, for errors.

    Raises:
        ModelLoadError: it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{arguments.model}/{filename} is no JSON: {error}") from error
