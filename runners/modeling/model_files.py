"""Files of a model, in its folder or on the hub. Importing this module imports neither torch nor `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError


def load_json(arguments: Arguments, filename: str) -> Any | None:
    """Parse a JSON file of the model; None if the file does not exist.

    Raises:
        ModelLoadError: the file is not JSON.
    """
    path = find_file(arguments, filename)
    return None if path is None else parse_json(arguments, path, filename)


def find_file(arguments: Arguments, filename: str) -> Path | None:
    """Find a file of the model, downloaded from the hub if necessary; None if it does not exist."""
    # The import takes seconds.
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
        path: path of the file on this machine.
        filename: its name in the model's folder or repository, for errors.

    Raises:
        ModelLoadError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{arguments.model}/{filename} is no JSON: {error}") from error
