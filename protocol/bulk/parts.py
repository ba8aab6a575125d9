"""Parts of a file: as many rows as are read, predicted and written at once."""

from __future__ import annotations

from dataclasses import dataclass

# Most rows and bytes of a part. A part that was not finished is done again after a break.
PART_ROWS = 1024
PART_BYTES = 4 * 2**20
# Of a generator, which takes seconds for a text.
GENERATED_ROWS = 128


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a file.

    Attributes:
        number: its position among the parts of the file, from 0.
        start: the byte, or of Parquet the row, at which it starts; `end` is the one after its last.
        rows: how many rows it has.
        line: the number of its first line, from 1; of Parquet the number of its first row.
    """

    number: int
    start: int
    end: int
    rows: int
    line: int


@dataclass(frozen=True, slots=True)
class PartSummary:
    """What has become of a part.

    Attributes:
        errors: how many of its rows have an error instead of a prediction.
    """

    number: int
    rows: int
    errors: int


class PartPlanner:
    """Cuts a file into parts while its rows are scanned."""

    def __init__(self, start: int, line: int, part_rows: int) -> None:
        """
        Args:
            start: the byte at which the rows start.
            line: the number of the first line there.
        """
        self.parts: list[Part] = []
        self._part_rows = part_rows
        self._start = self._end = start
        self._line = self._next_line = line
        self._rows = 0

    def add(self, size: int, lines: int = 1, is_row: bool = True) -> None:
        """Add the next bytes of the file.

        Args:
            size: how many bytes they are.
            lines: how many lines they have.
            is_row: whether they are a row; empty lines are none.
        """
        if is_row and self._rows and (self._rows == self._part_rows or self._end + size - self._start > PART_BYTES):
            self._cut()
        self._end += size
        self._next_line += lines
        self._rows += is_row

    def finish(self) -> tuple[Part, ...]:
        """All parts; rows come no more. A file without rows has a part without any."""
        if self._rows or not self.parts:
            self._cut()
        return tuple(self.parts)

    def _cut(self) -> None:
        self.parts.append(Part(len(self.parts), self._start, self._end, self._rows, self._line))
        self._start, self._line, self._rows = self._end, self._next_line, 0
