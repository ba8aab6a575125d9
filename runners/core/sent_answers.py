"""Resources of an answer, given back once the answer has been sent: its client decides how long that takes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Release = Callable[[], None]

_releases: ContextVar[list[Release] | None] = ContextVar("releases", default=None)


def collect_releases() -> list[Release]:
    """A list that `release_when_sent` fills in the running task; the caller must call `release_all` with it."""
    releases: list[Release] = []
    _releases.set(releases)
    return releases


def release_all(releases: list[Release]) -> None:
    """Give back what an answer holds, once its client has read it."""
    for release in releases:
        release()


def release_when_sent(release: Release) -> None:
    """Give something back once the answer has been sent; at once if nobody tells when that is."""
    releases = _releases.get()
    if releases is None:
        release()
    else:
        releases.append(release)
