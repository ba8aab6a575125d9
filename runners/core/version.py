"""The version of this project, for the package's metadata, `--version`, OpenAPI and the servers' metadata."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

VERSION = "0.2.0"


def find_version(distribution: str) -> str | None:
    """The version of an installed package; None if it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
