"""The ways in which texts share a batch."""

from __future__ import annotations

from enum import StrEnum


class BatchMode(StrEnum):
    """Which texts may share a batch, and how they are laid out."""

    # Any texts, concatenated.
    PACKED = "packed"
    # Any texts, padded to the longest; best for similar lengths.
    PADDED = "padded"
    EQUAL_LENGTH = "equal length"
    ONE_BY_ONE = "one by one"
