"""Runs commands as a container may: as a user without a name, with a root file system that cannot be written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

UID = 12345
# It may read what the tests' user may, the interpreter in a home among that, and write nothing that is not its own.
_CAPABILITY = "+dac_read_search"
# Kernel file systems stay; the folder that may be written gets one of its own, which ends with the command.
_ISOLATE = f"""
mount --make-rprivate / && mount --bind / /
for point in $(awk '{{print $5}}' /proc/self/mountinfo | sort -u); do
  case $point in
    /proc*|/sys*|/dev|/dev/pts|/dev/mqueue) ;;
    *) mount -o remount,bind,ro "$point" 2>/dev/null ;;
  esac
done
if [ -n "$WRITABLE" ]; then mount -t tmpfs -o mode=1777 tmpfs "$WRITABLE" || exit 99; fi
exec setpriv --reuid={UID} --clear-groups --inh-caps={_CAPABILITY} --ambient-caps={_CAPABILITY} --bounding-set=-all,{_CAPABILITY} "$@"
"""

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can take the root file system away")


def restrict(command: Sequence[str], writable: str | Path = "") -> list[str]:
    """The command in a name space of its own in which only one folder can be written.

    Args:
        writable: an empty folder while the command runs; empty for none.
    """
    return ["unshare", "--mount", "env", f"WRITABLE={writable}", "HOME=/", "sh", "-c", _ISOLATE, "sh", *command]
