"""Garbage collection of imported modules and of loaded models."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import modules in the block without collections, and exclude what they made, which stays, from later ones.

    Collections take a tenth of the time of the imports, because objects become many and none is garbage.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def freeze_objects() -> None:
    """Exclude the objects of a loaded model, which stay, from collections, whose pauses would delay requests."""
    gc.collect()
    gc.freeze()


def collect_unloaded() -> None:
    """Free the memory of a model that was unloaded: only objects that are not frozen are collected."""
    gc.unfreeze()
    gc.collect()
