"""Files that have their names once they are whole and on the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

TMP = ".tmp"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name, and give it its own once it is whole.

    Args:
        write: writes the file with the name that it gets.

    Raises:
        OSError: the file cannot be written; it names the file.
    """
    # Processes of several machines may write the file at once, and have equal ids.
    tmp = path.with_name(f"{path.name}.{uuid4().hex}{TMP}")
    with add_filename(path):
        try:
            write(tmp)
            sync(tmp)
            tmp.rename(path)
        finally:
            tmp.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def add_filename(path: Path) -> Iterator[None]:
    """Name the file in errors that name none, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
