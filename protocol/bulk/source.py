"""Files of rows that are read in parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from protocol.bulk.parts import Part
from protocol.bulk.rows import Rows
from runners.core.errors import InputError


class Source(ABC):
    """A file of rows, of one format.

    Attributes:
        text_column: the column of texts.
        answer_columns: the columns that the job adds, which the file must not have.
    """

    def __init__(self, path: Path, text_column: str, answer_columns: Collection[str]) -> None:
        self.path = path
        self.text_column = text_column
        self.answer_columns = tuple(answer_columns)

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

    def read(self, part: Part) -> Rows:
        """The rows of a part. Parts that follow each other are read fastest.

        Raises:
            InputError: the file has changed since it was planned, or cannot be read.
        """
        rows = self.read_rows(part)
        if len(rows) != part.rows:
            raise changed_error(self.path)
        return rows

    @abstractmethod
    def read_rows(self, part: Part) -> Rows:
        """The rows at a part's place, which are others if the file has changed."""


def identify_file(path: Path) -> tuple[int, int]:
    """The size of a file in bytes and the time of its last change in ns: they tell whether it has changed."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def changed_error(path: Path) -> InputError:
    """The error of an input in which the places of the parts are no longer true."""
    return InputError(
        f"{path} has changed during the job: begin again with another --output, or delete the folder of the parts"
    )
