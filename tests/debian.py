"""Programs of Debian's packages that tests run beside the server: Prometheus and proxies."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache

import pytest

from tests.servers import ROOT

# `make debian-programs` unpacks the packages there.
UNPACKED = ROOT / ".debian"
_FOLDERS = "/usr/sbin", str(UNPACKED / "usr/bin"), str(UNPACKED / "usr/sbin")
# Some of them need libraries that were unpacked beside them.
ENVIRONMENT = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, UNPACKED.glob("usr/lib/*-linux-gnu")))}


@cache
def find_program(name: str) -> str | None:
    """Where a program is; None if it is not here, or does not start."""
    program = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_FOLDERS]))
    if program is None:
        return None
    option = "--version" if name.startswith("prom") else "-v"
    started = subprocess.run([program, option], env=ENVIRONMENT, capture_output=True, check=False)
    return program if started.returncode == 0 else None


def needs_program(name: str) -> pytest.MarkDecorator:
    reason = f"{name} is not here: `make debian-programs` unpacks it from Debian's package"
    return pytest.mark.skipif(find_program(name) is None, reason=reason)
