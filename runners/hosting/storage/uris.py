"""URIs of models: what they name, and where their download is kept."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from huggingface_hub import constants

from runners.core.errors import ArgumentsError
from runners.core.redaction import redact

CACHE_VARIABLE = "STORAGE_CACHE_DIR"
SCHEMES = ("bentoml", "file", "gs", "hdfs", "hf", "http", "https", "modelscope", "oci", "s3", "webhdfs")
# KServe's storage initializer reads both; they choose the files of a model.
PATTERN_VARIABLES = ("STORAGE_ALLOW_PATTERNS", "STORAGE_IGNORE_PATTERNS")
# URIs of these may end in `:revision`.
_WITH_REVISION = ("hf", "modelscope")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_uri(text: str) -> bool:
    return _URI.match(text) is not None


def add_revision(uri: str, revision: str | None) -> str:
    """The URI with `model_revision`, unless it names that revision itself.

    Raises:
        ArgumentsError: the URI names another revision, or its scheme has none.
    """
    if revision is None:
        return uri
    scheme, _, rest = uri.partition("://")
    if scheme not in _WITH_REVISION:
        raise ArgumentsError(
            f"model_revision is {revision!r}, but {redact(uri)} has no revisions: only hub ids and URIs of "
            f"{' and '.join(_WITH_REVISION)} have"
        )
    named = rest.partition(":")[2]
    if named and named != revision:
        raise ArgumentsError(f"model_revision is {revision!r}, but {redact(uri)} names another")
    return uri if named else f"{uri}:{revision}"


def download_folder(uri: str) -> Path:
    """The folder that the download of a URI is kept in; its name differs for each URI and choice of files."""
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path(constants.HF_HOME) / "storage")
    identity = json.dumps([uri, *(os.environ.get(variable, "") for variable in PATTERN_VARIABLES)])
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", uri.partition("?")[0].rstrip("/").rpartition("/")[2])[:60]
    return cache / f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
