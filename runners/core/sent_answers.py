"""Releases the resources of an answer once the answer has been sent; a slow client takes long to read it."""

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
    """Call all releases of an answer; to be called once the answer has been sent."""
    for release in releases:
        release()


def release_when_sent(release: Release) -> None:
    """Call `release` once the answer has been sent; at once if the running task does not collect releases."""
    releases = _releases.get()
    if releases is None:
        release()
    else:
        releases.append(release)
