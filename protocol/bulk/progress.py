"""How far a job is: a bar on a terminal, and a line of the log at its start and its end."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Progress:
    """
    Attributes:
        rows: how many rows are answered by this process.
        errors: how many rows have an error, those of earlier processes included.
    """

    rows: int = 0
    errors: int = 0
    _started: float = field(default_factory=time.monotonic)
    _bar: Any = None

    def start(self, total: int | None = None, done: int = 0, errors: int = 0, shows_bar: bool = True) -> None:
        """
        Args:
            total: how many rows there are; None if it is not known.
            done: how many of them an earlier process has answered, and how many errors these have.
            shows_bar: whether there may be a bar: not among answers on a terminal.
        """
        self.errors = errors
        self._started = time.monotonic()
        if total is not None:
            logger.info("%d rows%s", total, f", {done} of which are answered already" if done else "")
        self._bar = tqdm(
            total=total, initial=done, unit=" rows", file=sys.stderr, disable=None if shows_bar else True, smoothing=0.1
        )

    def add(self, rows: int, errors: int) -> None:
        self.rows += rows
        self.errors += errors
        self._bar.update(rows)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def conclude(self) -> None:
        """Say what was done."""
        self.close()
        seconds = time.monotonic() - self._started
        logger.info("%d rows in %.1f s, %.1f a second", self.rows, seconds, self.rows / max(seconds, 1e-9))
        if self.errors:
            logger.error("%d rows have an error instead of a prediction", self.errors)
