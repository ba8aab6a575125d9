"""Replaces the URI of a model in the arguments by a local folder."""

from __future__ import annotations

from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError, RunnerError
from runners.core.redaction import redact
from runners.hosting.storage.uris import add_revision, is_uri


def localize_model(arguments: Arguments) -> Arguments:
    """The arguments with a local folder in place of a URI in `model_dir`; downloads the model if necessary.

    Raises:
        ArgumentsError: the URI, or a revision beside it, is not valid, or the storage extra is not installed.
        ModelLoadError: the download fails, or contains no model.
    """
    uri = _read_uri(arguments)
    if uri is None:
        return arguments
    # Imported where it is needed: the clients of the storages take a third of a second and 20 MB.
    from runners.hosting.storage.download import fetch_model

    return _replace_uri(arguments, fetch_model(uri))


def find_local_model(arguments: Arguments) -> Arguments:
    """As `localize_model`, without a download.

    The arguments stay as they are if the URI is wrong or the model is not on this machine.
    """
    try:
        uri = _read_uri(arguments)
        if uri is None:
            return arguments
        from runners.hosting.storage.download import find_model

        folder = find_model(uri)
    except RunnerError:
        return arguments
    return arguments if folder is None else _replace_uri(arguments, folder)


def _read_uri(arguments: Arguments) -> str | None:
    """The URI with the revision; None if the arguments name a local folder or a hub id."""
    if arguments.model_id is not None:
        # vLLM itself streams from some object stores.
        if is_uri(arguments.model_id) and arguments.backend != "vllm":
            raise ArgumentsError(
                f"model_id is {redact(arguments.model_id)!r}, but it must be a hub id or a folder; "
                "--model_dir takes URIs"
            )
        return None
    if not is_uri(arguments.model_dir):
        return None
    uri = add_revision(arguments.model_dir, arguments.model_revision)
    if arguments.tokenizer_revision not in (None, arguments.model_revision):
        raise ArgumentsError(
            f"tokenizer_revision cannot be set for {redact(uri)}, which has one revision: set --model_id to a hub id"
        )
    return uri


def _replace_uri(arguments: Arguments, folder: Path) -> Arguments:
    return arguments.model_copy(update={"model_dir": str(folder), "model_revision": None, "tokenizer_revision": None})
