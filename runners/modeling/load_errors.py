"""Why a model cannot be loaded. Importing this module imports neither torch nor `transformers`."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from runners.core.errors import ModelLoadError, RunnerError, list_names, one_line
from runners.modeling.hub_errors import explain_hub_error

logger = logging.getLogger(__name__)

# Git without its LFS extension leaves a pointer of about 130 bytes in place of a large file.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = 1024
# Files that an error lists.
MOST_FILES = 4


@contextlib.contextmanager
def load_errors(model: str, revision: str | None = None) -> Iterator[None]:
    """Turn every error of the block, in which a model loads, into a RunnerError with a message of one line.

    Args:
        revision: the revision of a model of the hub.

    Raises:
        ModelLoadError: instead of an error that is no RunnerError.
    """
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        if not Path(model).is_dir() and (reason := explain_hub_error(model, revision, error)) is not None:
            raise ModelLoadError(reason) from error
        raise ModelLoadError(f"{model} cannot be loaded: {_explain(Path(model), error)}") from error


def _explain(folder: Path, error: Exception) -> str:
    """Why a model cannot be loaded, in one line: a cause that this server knows, else the library's message."""
    if pointers := _find_pointers(folder, (path for pattern in ("*", "*/*") for path in folder.glob(pattern))):
        return _describe_pointers(pointers)
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's own message advises to run the code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        return "its .bin weights are no pickle of tensors alone" + (f": they call {found[1]}" if found else "")
    return f"{type(error).__name__}: {one_line(error)}"


def refuse_pointers(folder: Path, paths: Iterable[Path]) -> None:
    """
    Args:
        folder: the model's folder.
        paths: the files in it that must be whole.

    Raises:
        ModelLoadError: Git LFS pointers are in place of some of them.
    """
    if pointers := _find_pointers(folder, paths):
        raise ModelLoadError(f"{folder} cannot be loaded: {_describe_pointers(pointers)}")


def _describe_pointers(names: list[str]) -> str:
    return (
        f"there are Git LFS pointers in place of {list_names(names, MOST_FILES)}; `git lfs pull` fetches the files "
        "themselves"
    )


def _find_pointers(folder: Path, paths: Iterable[Path]) -> list[str]:
    """The names of the files in a folder that are Git LFS pointers, in order."""
    return sorted(
        {
            str(path.relative_to(folder))
            for path in paths
            if path.is_file() and path.stat().st_size <= _LFS_BYTES and path.read_bytes().startswith(_LFS_POINTER)
        }
    )
