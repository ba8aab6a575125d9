"""The commit of a model of the hub, which names a folder of the hub's cache."""

from __future__ import annotations

from pathlib import Path

_SNAPSHOTS = "snapshots"


def find_commit(path: str | Path) -> str | None:
    """The commit that a file or folder of the hub's cache belongs to; None for another path."""
    parts = Path(path).parts
    return parts[parts.index(_SNAPSHOTS) + 1] if _SNAPSHOTS in parts[:-1] else None
