"""What a server's processes hold: memory without page cache, threads, file descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

_FIELD = re.compile(r"^(Pss_Anon|Pss_Shmem): +(\d+) kB$", re.MULTILINE)
# The signals that a process has a handler for.
_CAUGHT = re.compile(r"^SigCgt:\t(\w+)$", re.MULTILINE)
_KIB = 1024


@dataclass(frozen=True)
class Holdings:
    """What the processes hold at one moment.

    Attributes:
        memory: bytes of anonymous and shared memory, of which each process counts its share: no files of the page cache.
        processes: the ids.
    """

    memory: int
    threads: int
    descriptors: int
    processes: frozenset[int]


def find_processes(root: int) -> list[psutil.Process]:
    """A process and all that it has started; none once it has ended."""
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def weigh(root: int) -> Holdings:
    """What a process and all that it has started hold; a process that ends meanwhile is left out."""
    memory = threads = descriptors = 0
    found = []
    for process in find_processes(root):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            memory += _read_memory(process.pid)
            threads += process.num_threads()
            descriptors += process.num_fds()
            found.append(process.pid)
    return Holdings(memory, threads, descriptors, frozenset(found))


def cpu_seconds(root: int) -> float:
    """What they have used so far."""
    total = 0.0
    for process in find_processes(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


@dataclass(frozen=True)
class Used:
    """What the heaps of all processes use: bytes of glibc's, and blocks of Python's own; the names of their threads."""

    heap_bytes: int
    python_blocks: int
    threads: tuple[str, ...] = ()


def read_used(folder: Path, processes: Iterable[int]) -> Used:
    """What processes have written to their files after `trim`; nothing of those without one."""
    files = [folder / str(process) for process in sorted(processes)]
    written = [json.loads(file.read_text()) for file in files if file.exists()]
    return Used(
        sum(each["heap_bytes"] for each in written),
        sum(each["python_blocks"] for each in written),
        tuple(name for each in written for name in each["threads"]),
    )


def _read_memory(pid: int) -> int:
    """https://www.kernel.org/doc/html/latest/filesystems/proc.html, smaps_rollup."""
    fields = _FIELD.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())
    return _KIB * sum(int(size) for _, size in fields)


def trim(root: int) -> None:
    """Ask all processes that tests/soak/heaps prepared to return what their heaps do not use; they need a moment."""
    for process in find_processes(root):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if int(_CAUGHT.findall(status)[0], 16) >> (signal.SIGRTMIN - 1) & 1:
                os.kill(process.pid, signal.SIGRTMIN)
