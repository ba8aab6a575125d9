"""API keys from arguments and files; only their digests are kept in memory."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from runners.core.answer_options import split_names
from runners.core.errors import ArgumentsError
from runners.core.file_watch import FileWatch

logger = logging.getLogger(__name__)

# Printable ASCII: an Authorization header carries it unchanged in HTTP and in gRPC's metadata.
_KEY = re.compile(r"[!-~]+")


def digest_key(key: bytes) -> bytes:
    """The SHA-256 of a key, 32 bytes."""
    return hashlib.sha256(key).digest()


def digest_keys(value: object) -> object:
    """The digests of keys that are separated by commas, or in a list; None for None.

    Raises:
        ValueError: there is no key, or one that no client can send; the message does not contain it.
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
    """The digests of the keys in a file: one a line; empty lines and lines that start with `#` are ignored.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file contains no key, or one that no client can send; the message does not contain it.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return _digest_all([line for line in lines if line and not line.startswith("#")])


def check_key_file(name: str, path: str | None) -> None:
    """
    Args:
        name: the name of the argument, for the message.
        path: the file, or None if the argument is unset.

    Raises:
        ArgumentsError: the file cannot be read, or contains no keys.
    """
    if path is None:
        return
    try:
        read_key_file(Path(path))
    except (OSError, ValueError) as error:
        raise ArgumentsError(f"{name} is {path}, which cannot be used: {_explain(error)}") from None


class KeyFile:
    """A file of keys that is read again when it changes.

    While the file is missing or wrong the keys stay as they are, so that a mistake neither admits nor excludes
    everybody. Before the file has been read for the first time there are no keys, and nobody is admitted.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._watch = FileWatch([path])
        self._digests: tuple[bytes, ...] = ()
        self._was_read = False
        self._failure = ""

    @property
    def digests(self) -> tuple[bytes, ...]:
        if self._watch.has_changed():
            self._reload()
        return self._digests

    def _reload(self) -> None:
        try:
            digests = read_key_file(self._path)
        except (OSError, ValueError) as error:
            failure = _explain(error)
            if failure != self._failure:
                logger.error("%s cannot be used, the keys stay as they are: %s", self._path, failure)
            self._failure = failure
            # The state is not accepted, so that the next check tries again.
            return
        if self._was_read:
            logger.info("%s has changed: %d keys", self._path, len(digests))
        self._watch.accept()
        self._digests, self._was_read, self._failure = digests, True, ""


def _explain(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    # The message of the error itself would contain bytes of the file.
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
