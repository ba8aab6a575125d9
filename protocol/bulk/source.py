"""Files of rows that are read in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from protocol.bulk.parts import Part
from protocol.bulk.rows import Rows


class Source(ABC):
    """A file of rows, of one format.

    Attributes:
        text_column: the column of texts.
        written: the columns that the job adds, which the file must not have.
    """

    def __init__(self, path: Path, text_column: str, written: Collection[str]) -> None:
        self.path = path
        self.text_column = text_column
        self.written = tuple(written)

    @abstractmethod
    def check_start(self) -> None:
        """Check the columns of the file, or of its first row, before a model is loaded.

        Raises:
            InputError: there is no column of texts, or one that the job would write, or the file is of another format.
        """

    @abstractmethod
    def plan(self, part_rows: int) -> tuple[Part, ...]:
        """Cut the file into parts of at most so many rows, in one pass.

        Raises:
            InputError: the file is wrong beyond what a row can be.
        """

    @abstractmethod
    def read(self, part: Part) -> Rows:
        """The rows of a part. Parts that follow each other are read fastest."""
