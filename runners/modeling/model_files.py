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


def check_folder(arguments: Arguments) -> None:
    """
    Raises:
        ModelLoadError: the arguments name a folder that does not exist, or has no config.json. An adapter, which
            `refuse_adapter` refuses, may have none.
    """
    path = Path(arguments.model)
    if (arguments.model_id is None or path.is_absolute()) and not path.is_dir():
        raise ModelLoadError(
            f"there is no folder {arguments.model}: set --model_id to a hub id or a folder, or --model_dir to a folder"
        )
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ModelLoadError(f"the folder {arguments.model} holds no config.json, so it is not a Hugging Face model")


def find_file(arguments: Arguments, filename: str) -> Path | None:
    """Find a file of the model, downloaded from the hub if necessary; None if it does not exist."""
    folder = Path(arguments.model)
    if folder.is_dir():
        path = folder / filename
        return path if path.is_file() else None
    # The import takes seconds.
    from transformers.utils.hub import cached_file

    found = cached_file(
        arguments.model,
        filename,
        revision=arguments.model_revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


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
