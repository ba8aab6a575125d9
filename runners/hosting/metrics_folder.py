"""The folder in which the processes of one server share their metrics.

BentoML gives all servers of one BENTOML_HOME the same folder, and each that starts empties it: the metrics of the
others are gone for ever. So the parent process of each server makes a folder of its own.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import IO

from runners.core.errors import ArgumentsError, one_line
from runners.core.metrics_lock import lock_files

logger = logging.getLogger(__name__)

# prometheus_client reads it when it is imported, and when a metric gets its first value.
VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# The folder of the parent process, in its workers: BentoML sets VARIABLE to its own for them.
_OWN_VARIABLE = "HUGGINGFACE_RUNTIME_METRICS"
_PREFIX = "huggingface-runtime-metrics-"
_LOCK = "lock"
# In place of a process id, in the names of the files that have the counts of processes that have ended.
_ENDED = "ended"
# A worker maps two to five files of 64 KiB or more, and writing to a mapped file on a full disk kills it (SIGBUS).
_LEAST_FREE = 8 * 2**20
_SHARED_MEMORY = "/dev/shm"
# It is locked for as long as this process lives.
_locks: list[IO[bytes]] = []


def make_metrics_folder(environment: MutableMapping[str, str]) -> None:
    """In BentoML's parent process: make the folder, which is removed when the process ends.

    Must be called before prometheus_client is imported. Folders of parents that were killed are removed.

    Args:
        environment: the variables of this process, which workers inherit. If the operator has set VARIABLE, the folder
            is made in that folder.

    Raises:
        ArgumentsError: there is no folder that can be written and has some MiB free.
    """
    refusals = []
    for place in _list_places(environment):
        if refusal := _check(place):
            refusals.append(refusal)
            continue
        _remove_stale(place)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        lock = (folder / f"{_LOCK}-new").open("wb")
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Another server that starts now finds no lock, or one that is held: it would remove the folder otherwise.
        (folder / f"{_LOCK}-new").rename(folder / _LOCK)
        _locks.append(lock)
        atexit.register(_remove, folder, os.getpid())
        environment[VARIABLE] = environment[_OWN_VARIABLE] = str(folder)
        return
    raise ArgumentsError(f"metrics need a folder: {'; '.join(refusals)}. Set TMPDIR or {VARIABLE} to another one")


def enter_metrics_folder(environment: MutableMapping[str, str]) -> None:
    """In a worker: use the folder of the parent process."""
    if (folder := environment.get(_OWN_VARIABLE)) is not None:
        environment[VARIABLE] = folder


def merge_ended_processes(folder: Path) -> None:
    """Add the counts of processes that have ended to one file of each kind, and remove the files of these processes.

    Else each worker that dies would leave files, all of which each scrape reads.
    """
    with lock_files(folder, moves=True):
        counters = []
        for path in folder.glob("*.db"):
            kind, _, pid = path.stem.rpartition("_")
            if not pid.isdigit() or _runs(int(pid)):
                continue
            if kind.startswith("gauge"):
                path.unlink()
            else:
                counters.append((path, folder / f"{kind}_{_ENDED}.db"))
        if shutil.disk_usage(folder).free < _LEAST_FREE:
            # Writing to a mapped file would end this process, which is worse than files that are left.
            return
        for path, total in counters:
            _add_counts(_read_counts(path), total)
            path.unlink()


def _read_counts(path: Path) -> list[tuple[str, float]]:
    # It is imported once the folder is made.
    from prometheus_client.mmap_dict import MmapedDict

    try:
        counts = [(key, value) for key, value, *_ in MmapedDict.read_all_values_from_file(path)]  # type: ignore[no-untyped-call]
        for key, _ in counts:
            json.loads(key)
        return counts
    # A worker may die while it makes a file; each scrape would fail at it, or at what was merged of it.
    except Exception as error:
        logger.warning("the counts of a worker that has ended are lost: %s: %s", path.name, one_line(error))
        return []


def _add_counts(counts: list[tuple[str, float]], total: Path) -> None:
    from prometheus_client.mmap_dict import MmapedDict

    totals = MmapedDict(total)  # type: ignore[no-untyped-call]
    for key, value in counts:
        totals.write_value(key, totals.read_value(key)[0] + value, 0.0)  # type: ignore[no-untyped-call]
    totals.close()  # type: ignore[no-untyped-call]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # Another user's, which has got the id since.
        return True
    return True


def _list_places(environment: MutableMapping[str, str]) -> Iterator[Path]:
    if chosen := environment.get(VARIABLE):
        yield Path(chosen)
        return
    with contextlib.suppress(FileNotFoundError):
        # No temporary folder can be written.
        yield Path(tempfile.gettempdir())
    yield Path(_SHARED_MEMORY)


def _check(place: Path) -> str:
    """Why a folder cannot be used; empty if it can."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(place).free
    except OSError as error:
        return f"{place} cannot be used ({error.strerror})"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} cannot be written"
    if free < _LEAST_FREE:
        return f"{place} has {free / 2**20:.1f} MiB free, and {_LEAST_FREE >> 20} are needed"
    return ""


def _remove_stale(place: Path) -> None:
    """Remove the folders of parent processes that do not live any more, in whatever container they lived."""
    for folder in place.glob(f"{_PREFIX}*"):
        # Another user's folder cannot be opened, and a parent that starts has no lock yet.
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+b") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _remove(folder: Path, owner: int) -> None:
    # A forked child has the same exit handlers.
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
