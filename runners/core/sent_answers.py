"""Releases resources of a request once its answer has been sent; until then its client decides how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Release = Callable[[], None]

_releases: ContextVar[list[Release] | None] = ContextVar("releases", default=None)


def collect_releases() -> list[Release]:
    """Collect the releases of the running task from now on; the caller must call all of the list in the end."""
    releases: list[Release] = []
    _releases.set(releases)
    return releases


def release_when_sent(release: Release) -> None:
    """Call `release` once the answer has been sent, or now if the running task does not collect releases."""
    releases = _releases.get()
    if releases is None:
        release()
    else:
        releases.append(release)
