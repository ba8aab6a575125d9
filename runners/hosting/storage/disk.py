"""Limits the bytes that a download may write, so that other processes can still write to the disk."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from runners.core.errors import ModelLoadError
from runners.core.machine import format_size

_RESERVE = 2**30
_RESERVED_SHARE = 0.05


def find_room(folder: Path) -> int:
    """The bytes that a download may write: the free bytes, except for 1 GiB or 5 % of a disk below 20 GiB."""
    usage = shutil.disk_usage(folder)
    return max(0, usage.free - min(_RESERVE, int(_RESERVED_SHARE * usage.total)))


@contextlib.contextmanager
def limit_files(room: int, redacted_uri: str) -> Iterator[None]:
    """Limit the size of each file that this process and its children write, whichever library writes it.

    Args:
        room: the limit in bytes.
        redacted_uri: the URI of the download without credentials, for errors.

    Raises:
        ModelLoadError: a file reaches the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = min([room, *(current for current in (soft, hard) if current != resource.RLIM_INFINITY)])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG or limit < room:
            raise
        raise ModelLoadError(
            f"{redacted_uri} is larger than the {format_size(room)} that the disk has room for"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
