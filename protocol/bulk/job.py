"""A job: the predictions of a file, part by part, so that it goes on where a break has ended it.

The answers of each part are a file in the folder OUTPUT.parts, which has its name once it is whole; a summary beside it
says that the part is done. When all parts are there, they are joined to OUTPUT, and the folder is removed: OUTPUT
exists exactly if the job is done. A worker needs only the Job and the folder, so it can run in any process that sees
the files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from protocol.bulk.durable_file import TMP, add_filename, replace_file, sync
from protocol.bulk.formats import open_output, open_source
from protocol.bulk.parts import Part, PartSummary
from protocol.bulk.rows import claim_columns
from protocol.bulk.source import Source, changed_error, identify_file
from runners.core.errors import InputError, list_names

STREAM = "-"
_DESCRIPTION, _LOCK = "job.json", "lock"
_JOINED = f"joined{TMP}"
_SUMMARY = ".json"
_PART_NAME = re.compile(r"\d{8}\.[a-z]+")

Description: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Job:
    """What is predicted, and where the answers go; it can be pickled.

    Attributes:
        input: a file, or `-` for a stream, which cannot be read again.
        parameters: V1's `parameters` of a request.
    """

    input: Path
    output: Path
    text_column: str
    parameters: Mapping[str, Any]

    @property
    def is_stream(self) -> bool:
        return str(self.input) == STREAM

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def description_path(self) -> Path:
        """What the job in the folder is."""
        return self.folder / _DESCRIPTION

    def check(self) -> None:
        """Check the files before a model is loaded.

        Raises:
            InputError: a name, a column or the input itself is wrong, or the output exists.
            OSError: the input cannot be read.
        """
        open_output(self.output)
        if (self.folder / _JOINED).exists() and self.output.exists() and self.output.samefile(self.folder / _JOINED):
            # The job was killed when it was done.
            self._remove_folder()
        self._check_absent()
        if not self.output.absolute().parent.is_dir():
            raise InputError(f"--output={self.output}: there is no folder {self.output.absolute().parent}")
        if not self.is_stream:
            self.open_source().check_start()

    def open_source(self, extra_names: Sequence[str] = ()) -> Source:
        """
        Args:
            extra_names: the columns that an answer has beside its prediction.
        """
        return open_source(self.input, self.text_column, claim_columns(self.text_column, extra_names))

    def plan(self, part_rows: int, extra_names: Sequence[str] = ()) -> tuple[Part, ...]:
        """The parts of the input, which are the same each time.

        Args:
            part_rows: most rows of a part.
            extra_names: as for `open_source`.

        Raises:
            InputError: the input is wrong beyond what a row can be.
        """
        return self.open_source(extra_names).plan(part_rows)

    def _check_absent(self) -> None:
        # A link that leads nowhere is somebody's too.
        if os.path.lexists(self.output):
            raise self._taken_error()

    def _taken_error(self) -> InputError:
        return InputError(f"{self.output} exists already: choose another --output, or move it away")

    def _describe(self, part_rows: int, model: Description) -> Description:
        """What must be the same when the job goes on."""
        reading = {"text_column": self.text_column, "parameters": dict(self.parameters), "part_rows": part_rows}
        return json.loads(json.dumps({**self._describe_input(), **reading, **model}))  # type: ignore[no-any-return]

    def _describe_input(self) -> Description:
        if self.is_stream:
            return {"input": STREAM}
        size, changed = identify_file(self.input)
        return {"input": str(self.input.resolve()), "input_bytes": size, "input_changed": changed}

    @contextmanager
    def open(self, part_rows: int, model: Description) -> Iterator[None]:
        """Create the folder of the parts, or go on with it; no other process may do so at the same time.

        Without a part that is worth keeping, the folder is removed at the end.

        Args:
            part_rows: most rows of a part.
            model: what decides the answers beside the input: the model and its arguments.

        Raises:
            InputError: the folder is another job's, or another process runs the job.
        """
        wanted = self._describe(part_rows, model)
        try:
            self.folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise InputError(
                f"{self.folder} must be the folder of the parts, and is none: move it away, or choose another --output"
            ) from None
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process writes {self.output} already") from None
        try:
            found = self._read_description()
            done = self.find_done()
            if found is None:
                self._check_empty()
            elif done:
                self._check_same(found, wanted)
            self._clear(done)
            replace_file(self.description_path, lambda tmp: tmp.write_text(json.dumps(wanted, indent=1)))
            try:
                yield
            finally:
                if self.folder.exists() and not self.find_done():
                    # A worker on another machine may still write.
                    shutil.rmtree(self.folder, ignore_errors=True)
        finally:
            lock.release()
            # NFS keeps a removed file that is open, such as the lock, in its folder.
            with suppress(OSError):
                self.folder.rmdir()

    def _read_description(self) -> Description | None:
        """What the job in the folder is; None in a new folder."""
        try:
            found = json.loads(self.description_path.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            found = None
        if not isinstance(found, dict) or "input" not in found:
            raise InputError(f"{self.description_path} is damaged: delete {self.folder} to begin again")
        return found

    def _check_empty(self) -> None:
        # A process that was killed may have left the beginning of a description.
        names = sorted(each.name for each in self.folder.iterdir() if each.suffix != TMP and each.name != _LOCK)
        if names:
            raise InputError(
                f"{self.folder} is no folder of this command: it has {list_names(names, 3)}; choose another --output"
            )

    def _check_same(self, found: Description, wanted: Description) -> None:
        names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if names:
            changes = "; ".join(f"{name} was {_show(found.get(name))}, is {_show(wanted.get(name))}" for name in names)
            raise InputError(
                f"{self.folder} has parts of another job: {changes}. Set them as they were to go on with it, "
                f"choose another --output, or delete {self.folder} to begin again"
            )

    def _clear(self, done: Mapping[int, PartSummary]) -> None:
        """Remove what is no part that is done."""
        for each in self.folder.iterdir():
            is_part = _PART_NAME.fullmatch(each.name)
            if each.suffix == TMP or (is_part and int(each.stem) not in done):
                each.unlink()

    def find_done(self) -> dict[int, PartSummary]:
        """The parts that are done, by their numbers."""
        found = {}
        names = {path.name for path in self.folder.iterdir()}
        for name in names:
            if _PART_NAME.fullmatch(name) and name.endswith(_SUMMARY):
                with suppress(ValueError, TypeError):
                    summary = PartSummary(**json.loads((self.folder / name).read_bytes()))
                    if self.part_path(summary.number).name in names:
                        found[summary.number] = summary
        return found

    def part_path(self, number: int) -> Path:
        """The file of a part's answers."""
        return self.folder / f"{number:08}{self.output.suffix.lower()}"

    def note_done(self, summary: PartSummary) -> None:
        """Say that a part is done, whose answers are written."""
        path = self.part_path(summary.number).with_suffix(_SUMMARY)
        replace_file(path, lambda tmp: tmp.write_text(json.dumps(asdict(summary))))

    def finish(self, parts: int) -> None:
        """Join the parts to the output, and remove their folder.

        Args:
            parts: how many there are.

        Raises:
            InputError: the input has changed, a part is missing, or somebody has made the output.
            OSError: the output cannot be written.
        """
        description = self._read_description() or {}
        if any(description.get(name) != value for name, value in self._describe_input().items()):
            raise changed_error(self.input)
        paths = [self.part_path(number) for number in range(parts)]
        if missing := [path.name for path in paths if not path.exists()]:
            raise InputError(f"{self.folder} has lost {list_names(missing, 3)}: the same command writes it again")
        joined = self.folder / _JOINED
        with add_filename(joined):
            try:
                open_output(self.output).merge(paths, joined)
                sync(joined)
            except OSError:
                joined.unlink(missing_ok=True)
                raise
        try:
            # Unlike a renamed file it replaces none.
            os.link(joined, self.output)
        except FileExistsError:
            raise self._taken_error() from None
        except OSError:
            # A file system without links.
            self._check_absent()
            joined.rename(self.output)
        # The output is whole: what fails from here on is no failure of the job.
        with suppress(OSError):
            sync(self.output.absolute().parent)
        self._remove_folder()

    def _remove_folder(self) -> None:
        """Remove the folder, as far as it can be, the joined file last: it tells that the job is done."""
        with suppress(OSError):
            for path in sorted(self.folder.iterdir(), key=lambda path: path.name == _JOINED):
                path.unlink()
            self.folder.rmdir()


def _show(value: object) -> str:
    return json.dumps(value)[:200]
