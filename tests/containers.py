"""Runs a command as the first process of a container."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from tests.waiting import wait_until

_NAMESPACE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def as_first_process(command: Sequence[str]) -> list[str]:
    """The command as PID 1 of a namespace of its own; skips the test where this user may not make one."""
    if subprocess.run([*_NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may not make namespaces of processes")
    return [*_NAMESPACE, *command]


def find_first_process(pid: int) -> psutil.Process:
    """PID 1 of the namespace that a process has made, once it has a handler: until then the kernel drops signals."""
    wait_until(lambda: psutil.Process(pid).children(), 5)
    [first] = psutil.Process(pid).children()
    wait_until(lambda: _holds_sigterm(first.pid), 5)
    return first


def _holds_sigterm(pid: int) -> bool:
    """Whether a process has blocked or caught SIGTERM; `unshare` blocks it too, for a moment, before it is replaced."""
    if Path(f"/proc/{pid}/comm").read_text() == "unshare\n":
        return False
    masks = re.findall(r"^Sig(?:Blk|Cgt):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)
