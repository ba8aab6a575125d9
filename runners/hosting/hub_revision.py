"""The revision of a model of the hub, so that all processes of a job load one commit."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from runners.core.arguments import Arguments
from runners.core.hub_commit import find_commit
from runners.hosting.storage.uris import is_uri


def pin_revision(arguments: Arguments) -> Arguments:
    """The arguments with the commit that the model's revision names now.

    They stay as they are for a folder, a URI, or a model whose config.json cannot be had: its load says why.
    """
    if is_uri(arguments.model) or Path(arguments.model).exists():
        return arguments
    try:
        path = hf_hub_download(arguments.model, "config.json", revision=arguments.model_revision)
    except (EntryNotFoundError, OSError, ValueError):
        return arguments
    return arguments.model_copy(update={"model_revision": find_commit(path) or arguments.model_revision})
