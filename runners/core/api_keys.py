"""The operator's keys as arguments and files have them; only their digests are kept."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path

from runners.core.answer_options import split_names
from runners.core.errors import ArgumentsError

logger = logging.getLogger(__name__)

# What an Authorization header carries unchanged in HTTP and in gRPC's metadata: printable ASCII.
_KEY = re.compile(r"[!-~]+")
_CHECK_SECONDS = 1.0


def digest_key(key: bytes) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def digest_keys(value: object) -> object:
    """The digests of a comma list of keys, or of a list of them; None for None.

    Raises:
        ValueError: there is no key, or one that no client can send; the message does not have it.
    """
    if value is None:
        return None
    # An argument file may have a number.
    keys = split_names(str(value) if isinstance(value, int) else value)
    if not isinstance(keys, tuple):
        raise ValueError("it must be a comma list of keys")
    return _digest_all([str(key) for key in keys])


def _digest_all(keys: Sequence[str]) -> tuple[bytes, ...]:
    if not keys:
        raise ValueError("it holds no key")
    for number, key in enumerate(keys, 1):
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"key {number} has a space or a character that is not ASCII, which no Authorization header carries"
            )
    return tuple(digest_key(key.encode()) for key in keys)


def read_key_file(path: Path) -> tuple[bytes, ...]:
    """The digests of the keys in a file: one a line, where empty lines and those that begin with `#` count for nothing.

    Raises:
        OSError: it cannot be read.
        ValueError: there is no key in it, or one that no client can send; the message does not have it.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return _digest_all([line for line in lines if line and not line.startswith("#")])


def check_key_file(name: str, path: str | None) -> None:
    """
    Args:
        name: of the argument.

    Raises:
        ArgumentsError: the file cannot be read, or holds no keys.
    """
    if path is None:
        return
    try:
        read_key_file(Path(path))
    except (OSError, ValueError) as error:
        raise ArgumentsError(f"{name} is {path}, which cannot be used: {_reason(error)}") from None


class KeyFile:
    """A file of keys that is read again once it has changed, which is looked for once a second at most.

    A file that is gone or wrong leaves the keys as they are, so that neither everybody nor nobody gets in; before it
    could be read for the first time there are none, and nobody gets in.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._digests: tuple[bytes, ...] = ()
        self._seen: tuple[int, ...] = ()
        self._failure = ""
        self._next_check = 0.0

    @property
    def digests(self) -> tuple[bytes, ...]:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECONDS
            self._reload()
        return self._digests

    def _reload(self) -> None:
        try:
            # Follows links: Kubernetes replaces a secret by pointing a link elsewhere.
            status = self._path.stat()
            seen = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return
            digests = read_key_file(self._path)
        except (OSError, ValueError) as error:
            failure = _reason(error)
            if failure != self._failure:
                logger.error("%s cannot be used, the keys stay as they are: %s", self._path, failure)
            self._failure = failure
            return
        if self._seen:
            logger.info("%s has changed: %d keys", self._path, len(digests))
        self._digests, self._seen, self._failure = digests, seen, ""


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    # Its own message has the bytes.
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
