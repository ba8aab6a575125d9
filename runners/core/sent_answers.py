"""What is given back once the answer of a request has been sent: until then its client decides how long it is kept."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Release = Callable[[], None]

_releases: ContextVar[list[Release] | None] = ContextVar("releases", default=None)


def collect_releases() -> list[Release]:
    """Let what the running task holds be given back by the caller, who must call all of the list in the end."""
    releases: list[Release] = []
    _releases.set(releases)
    return releases


def release_when_sent(release: Release) -> None:
    """Give something back once the answer has been sent; at once if nobody tells when that is."""
    releases = _releases.get()
    if releases is None:
        release()
    else:
        releases.append(release)
