"""Garbage collection of loaded models."""

from __future__ import annotations

import gc


def freeze_objects() -> None:
    """Exclude the objects of a loaded model, which stay, from collections, whose pauses would delay requests."""
    gc.collect()
    gc.freeze()


def collect_unloaded() -> None:
    """Free the memory of a model that was unloaded: only objects that are not frozen are collected."""
    gc.unfreeze()
    gc.collect()
