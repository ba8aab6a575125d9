"""The revision of a model of the hub, so that all processes of a job load one commit."""

from __future__ import annotations

from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.hub_commit import find_commit
from runners.hosting.selection import fetch_from_hub
from runners.hosting.storage.uris import is_uri


def pin_revision(arguments: Arguments) -> Arguments:
    """The arguments with the commit that the model's revision names now.

    They stay as they are for a folder, a URI, or a model whose config.json cannot be had: its load says why.
    """
    if is_uri(arguments.model) or Path(arguments.model).exists():
        return arguments
    try:
        path = fetch_from_hub(arguments, "config.json")
    except (OSError, ValueError):
        return arguments
    return arguments.model_copy(update={"model_revision": find_commit(path) or arguments.model_revision})
