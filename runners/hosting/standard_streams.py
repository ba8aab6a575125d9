"""The standard streams of a command whose output is its answers."""

from __future__ import annotations

import os
import sys


def open_closed_streams() -> list[int]:
    """Open the standard streams that are closed, on /dev/null: another file would get the number of one.

    Returns:
        The descriptors of those that were closed.
    """
    closed = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free.
            closed.append(os.open(os.devnull, os.O_RDWR))
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    return closed


def keep_output() -> int:
    """The descriptor of the standard output, for answers only: what libraries print goes to the standard error."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor
