"""How far a job is: a bar on a terminal, else a line of the log each minute; and one at its start and its end."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

logger = logging.getLogger(__name__)

# Between two lines of the log.
_SECONDS = 60.0


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
    _reported: float = field(default_factory=time.monotonic)
    _reports: bool = False
    _bar: Any = None

    def start(self, total: int | None = None, done: int = 0, errors: int = 0, shows_bar: bool = True) -> None:
        """
        Args:
            total: how many rows there are; None if it is not known.
            done: how many of them an earlier process has answered, and how many errors these have.
            shows_bar: whether there may be a bar: not among answers on a terminal.
        """
        self.errors = errors
        self._started = self._reported = time.monotonic()
        if total is not None:
            logger.info("%s%s", count_rows(total), f", {done} of which are answered already" if done else "")
        self._bar = tqdm(
            total=total, initial=done, unit=" rows", file=sys.stderr, disable=None if shows_bar else True, smoothing=0.1
        )
        self._reports = shows_bar and bool(self._bar.disable)

    def add(self, rows: int, errors: int) -> None:
        self.rows += rows
        self.errors += errors
        self._bar.update(rows)
        now = time.monotonic()
        if self._reports and now - self._reported >= _SECONDS:
            self._reported = now
            logger.info("%s answered, %.1f a second", count_rows(self.rows), self.rows / (now - self._started))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()

    def conclude(self) -> None:
        """Say what was done."""
        self.close()
        seconds = time.monotonic() - self._started
        logger.info("%s in %.1f s, %.1f a second", count_rows(self.rows), seconds, self.rows / max(seconds, 1e-9))
        if self.errors:
            verb = "has" if self.errors == 1 else "have"
            logger.error("%s %s an error instead of a prediction", count_rows(self.errors), verb)


def count_rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"
