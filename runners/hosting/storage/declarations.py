"""The local path of a models file or a model repository."""

from __future__ import annotations

from pathlib import Path

from runners.core.errors import ArgumentsError
from runners.core.redaction import redact
from runners.hosting.process import is_parent, is_worker
from runners.hosting.storage.uris import is_uri

# Of these a URI may name one file.
_FILE_SCHEMES = ("bentoml", "file", "gs", "hdfs", "http", "https", "s3", "webhdfs")


def localize_declarations(location: str, fetches: bool | None = None) -> Path | None:
    """The path of a file or folder; of a file at a URI, the copy that the parent process downloads at every start.

    `bentoml://name:version/models.yaml` is a file in BentoML's model store.

    Args:
        fetches: whether this process downloads the file; None if it does as BentoML's parent process alone.

    Returns:
        None if a Bento is built, and the path is not on this machine or a URI: a build downloads nothing.

    Raises:
        ArgumentsError: a URI is of another scheme, BentoML's store has no such file, or the storage extra is not
            installed.
        ModelLoadError: the download fails; an earlier copy is not used, because it may be out of date.
    """
    scheme, separator, rest = location.partition("://")
    if separator and scheme not in _FILE_SCHEMES:
        raise ArgumentsError(
            f"models_file is {redact(location)!r}: it must be a path or a URI of {', '.join(_FILE_SCHEMES)}"
        )
    if fetches is None:
        fetches = is_parent()
    if not is_uri(location) or scheme == "file":
        path = Path(rest if separator else location)
        return path if fetches or is_worker() or path.exists() else None
    # Imported where it is needed: the clients of the storages take a third of a second and 20 MB.
    from runners.hosting.storage.download import fetch_file, find_file, find_stored_file

    if scheme == "bentoml":
        return find_stored_file(rest)
    if fetches:
        fetch_file(location)
    return find_file(location) if fetches or is_worker() else None
