"""Why a model cannot be loaded. Importing this module imports neither torch nor `transformers`."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

from runners.core.errors import ModelLoadError, RunnerError, one_line

logger = logging.getLogger(__name__)

# Git without its LFS extension leaves a pointer of about 130 bytes in place of a large file.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = 1024


@contextlib.contextmanager
def load_errors(model: str) -> Iterator[None]:
    """Turn every error of the block, in which a model loads, into a RunnerError with a message of one line.

    Raises:
        ModelLoadError: instead of an error that is no RunnerError.
    """
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        raise ModelLoadError(f"{model} cannot be loaded: {_explain(Path(model), error)}") from error


def _explain(folder: Path, error: Exception) -> str:
    """Why a model cannot be loaded, in one line: a cause that this server knows, else the library's message."""
    if pointers := sorted({*_find_pointers(folder)}):
        names = ", ".join(pointers[:4]) + (", ..." if len(pointers) > 4 else "")
        return f"there are Git LFS pointers in place of {names}; `git lfs pull` fetches the files themselves"
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's own message advises to run the code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        return "its .bin weights are no pickle of tensors alone" + (f": they call {found[1]}" if found else "")
    return f"{type(error).__name__}: {one_line(error)}"


def _find_pointers(folder: Path) -> Iterator[str]:
    """Names of files that are Git LFS pointers, in a local folder and the folders in it."""
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_size <= _LFS_BYTES and path.read_bytes().startswith(_LFS_POINTER):
                yield str(path.relative_to(folder))
