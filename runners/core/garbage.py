"""Garbage collection of imported modules and of loaded models, and the free memory of glibc's heaps."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Import a module in the block without collections, and exclude what it made, which stays, from later ones.

    Collections take a tenth of the time of the imports, because objects become many and none is garbage. If the module
    is there already, nothing is excluded: the objects of running requests would be, which do not stay.
    """
    if module in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_objects() -> None:
    """Exclude the objects of a loaded model, which stay, from collections, whose pauses would delay requests.

    What loading needed goes back to the system, so that it does not count as needed by requests.
    """
    gc.collect()
    gc.freeze()
    _trim_heaps()


def collect_unloaded(is_freed: Callable[[], bool] = lambda: False) -> None:
    """Free the memory of a model that was unloaded, to which its owner refers no more.

    Args:
        is_freed: whether the model is gone already, which it is unless its objects refer to each other. A full
            collection holds all threads for some tenths of a second.
    """
    if not is_freed():
        gc.unfreeze()
        gc.collect()
        # What is left belongs to other models and modules.
        gc.freeze()
    _trim_heaps()


def find_trim() -> Callable[[int], int] | None:
    """glibc's function that returns the free memory of all heaps to the system; None without glibc."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _trim_heaps() -> None:
    trim = find_trim()
    if trim is not None:
        trim(0)
