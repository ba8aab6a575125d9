"""Results of trials at load, kept in a folder, so that a start takes less time and all workers choose the same.

A choice by trying may fall the other way at another start, and another kernel gives other last bits. So the result that
was written first counts, for every process on the machine and for every load of a model.

The folder is `huggingface-runtime` in XDG_CACHE_HOME or `~/.cache`, or else in the folder for temporary files.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch

from runners.core.errors import brief
from runners.core.version import VERSION

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NAME = "huggingface-runtime"
_CPUINFO = Path("/proc/cpuinfo")
# What tells one kind of CPU from another, in /proc/cpuinfo on x86 and on ARM.
_CPU_FIELDS = {
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU variant", "CPU part", "Features",
}  # fmt: skip
# Prefixes of the variables that change the kernels of oneDNN and MKL.
_LIBRARIES = ("ONEDNN_", "DNNL_", "MKL_")
# The bytes of a file that are read; its key has the values of the variables above.
_MOST_BYTES = 2**20
# The results that this process has used: a model that is loaded again gets the same without a folder too.
_known: dict[str, Any] = {}


def recall_or_try(key: Mapping[str, Any], try_out: Callable[[], T], parse: Callable[[Any], T]) -> T:
    """The result of a trial, which is done only if no earlier one on this kind of machine is known.

    A folder that cannot be used costs only the time of the trial.

    Args:
        key: what was tried, for JSON; the machine and the versions are added.
        try_out: does the trial; its result is for JSON.
        parse: makes the result of what JSON has; it raises ValueError, TypeError or KeyError for anything else, which
            is not used then.
    """
    whole_key = json.dumps({**_describe_machine(), **key}, sort_keys=True)
    if whole_key in _known:
        known: T = _known[whole_key]
        return known
    paths = [folder / f"{hashlib.sha256(whole_key.encode()).hexdigest()}.json" for folder in _list_folders()]
    kept = [result for path in paths if (result := _read(path, whole_key, parse)) is not None]
    result = kept[0] if kept else _keep(paths, whole_key, try_out(), parse)
    first: T = _known.setdefault(whole_key, result)
    return first


def _keep(paths: Sequence[Path], key: str, result: T, parse: Callable[[Any], T]) -> T:
    """Write a result to the first file that can be written, and return what is there: another process may be first."""
    for path in paths:
        try:
            _write_first(path, json.dumps({"key": key, "result": result}), partial(_read, path, key, parse))
        except OSError as error:
            logger.debug("the result of a trial is not kept in %s: %s", path.parent, brief(error))
            continue
        written = _read(path, key, parse)
        return result if written is None else written
    return result


def _list_folders() -> list[Path]:
    """Where results are looked for and kept, in this order."""
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not caches.is_absolute():
        # XDG Base Directory Specification: such a value is ignored.
        caches = Path(os.path.expanduser("~/.cache"))
    folders = [caches / _NAME]
    # It fails where nothing can be written.
    with suppress(OSError):
        folders.append(Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}")
    return [folder for folder in folders if folder.is_absolute()]


def make_folder(name: str) -> Path | None:
    """A folder beside the results of trials; None if none can be made."""
    for folder in _list_folders():
        with suppress(OSError):
            made = folder / name
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
            if made.stat().st_uid == os.getuid() and os.access(made, os.W_OK):
                return made
    return None


def _read(path: Path, key: str, parse: Callable[[Any], T]) -> T | None:
    """The result that is kept; None if there is none, or none that can be used."""
    try:
        entry = json.loads(_read_file(path), parse_constant=_refuse_constant)
        return parse(entry["result"]) if entry["key"] == key else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _refuse_constant(name: str) -> NoReturn:
    """Python's JSON has NaN and Infinity beside numbers."""
    raise ValueError(f"{name} is no number")


def _read_file(path: Path) -> bytes:
    """
    Raises:
        OSError: there is no file that can be read, or it is of another user.
    """
    # Others can make the folder for temporary files first, and fill it: with pipes, or with links to endless devices.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.getuid(), 0):
            raise OSError(f"{path} is not a file of this user")
        return file.read(_MOST_BYTES)


def _write_first(path: Path, content: str, read: Callable[[], Any]) -> None:
    """Write a file as a whole, unless a usable one is there.

    Args:
        read: gives None if the file cannot be used.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, written = tempfile.mkstemp(dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        if path.exists() and read() is None:
            os.replace(written, path)
        else:
            # Fails if another process was first, unlike a replacement.
            with suppress(FileExistsError):
                os.link(written, path)
    finally:
        Path(written).unlink(missing_ok=True)


@functools.cache
def _describe_machine() -> dict[str, Any]:
    """What the fastest kernel depends on; the text of the CPU is hashed."""
    try:
        processor = _CPUINFO.read_text().split("\n\n", 1)[0]
    except OSError:
        processor = ""
    fields = [line for line in processor.splitlines() if line.partition(":")[0].strip() in _CPU_FIELDS]
    return {
        "cpu": hashlib.sha256("\n".join(fields).encode()).hexdigest(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "version": VERSION,
        "environment": {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_LIBRARIES)},
    }
