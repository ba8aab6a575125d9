"""A job: the predictions of a file, part by part, so that it goes on where a break has ended it.

The answers of each part are a file in the folder OUTPUT.parts, which has that name once it is whole. When all parts are
there, they are joined to OUTPUT, and the folder is removed: OUTPUT exists exactly if the job is done. Who runs a part
needs the job and the folder alone, so that any process of any machine with the same files can run one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from filelock import FileLock, Timeout

from protocol.bulk.formats import open_output, open_source
from protocol.bulk.outputs import count_errors
from protocol.bulk.parts import Part, PartSummary
from protocol.bulk.predictor import Answer, Predictor
from protocol.bulk.rows import Rows, list_written
from protocol.bulk.source import Source
from runners.core.errors import InputError, list_names

STREAM = "-"
_DESCRIPTION, _LOCK, _TMP = "job.json", "lock", ".tmp"
_JOINED = f"joined{_TMP}"
# A part's name says how many of its rows have an error.
_PART_NAME = re.compile(r"(\d{8})-errors-(\d+)\.[a-z]+")
# While the last texts of a part are answered, those of the next ones wait already.
_PARTS_AT_ONCE = 8

Description: TypeAlias = Mapping[str, Any]
T = TypeVar("T")


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
    def description(self) -> Path:
        """What the job in the folder is."""
        return self.folder / _DESCRIPTION

    def check(self) -> None:
        """Check the files before a model is loaded.

        Raises:
            InputError: a name, a column or the input itself is wrong, or the output exists.
            OSError: the input cannot be read.
        """
        open_output(self.output)
        if self.output.exists():
            raise InputError(f"{self.output} exists already: choose another --output, or move it away")
        if not self.output.absolute().parent.is_dir():
            raise InputError(f"--output={self.output}: there is no folder {self.output.absolute().parent}")
        if not self.is_stream:
            self.open_source().check_start()

    def open_source(self, extra_names: Sequence[str] = ()) -> Source:
        """
        Args:
            extra_names: the columns that an answer has beside its prediction.
        """
        return open_source(self.input, self.text_column, list_written(extra_names))

    def plan(self, part_rows: int, extra_names: Sequence[str] = ()) -> tuple[Part, ...]:
        """The parts of the input, which are the same each time.

        Args:
            part_rows: most rows of a part.
            extra_names: as for `open_source`.

        Raises:
            InputError: the input is wrong beyond what a row can be.
        """
        return self.open_source(extra_names).plan(part_rows)

    def _describe(self, part_rows: int, model: Description) -> Description:
        """What must be the same when the job goes on."""
        if self.is_stream:
            return {"input": STREAM}
        state = self.input.stat()
        return {
            "input": str(self.input.resolve()),
            "input_bytes": state.st_size,
            "input_changed": state.st_mtime_ns,
            "text_column": self.text_column,
            "parameters": dict(self.parameters),
            "part_rows": part_rows,
            **model,
        }

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
        description = json.loads(json.dumps(self._describe(part_rows, model)))
        self.folder.mkdir(exist_ok=True)
        lock = FileLock(self.folder / _LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"another process writes {self.output} already") from None
        try:
            self._check_description(description)
            try:
                yield
            finally:
                if self.folder.exists() and (self.is_stream or not self.find_done()):
                    shutil.rmtree(self.folder)
        finally:
            lock.release()

    def _check_description(self, wanted: Description) -> None:
        path = self.description
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            # A process that was killed may have left the beginning of one.
            strangers = sorted(each.name for each in self.folder.iterdir() if each.suffix != _TMP)
            if strangers := [name for name in strangers if name != _LOCK]:
                raise InputError(
                    f"{self.folder} is no folder of this command: it has {list_names(strangers, 3)}; "
                    "choose another --output"
                ) from None
            found = wanted
        except ValueError:
            raise InputError(f"{path} is damaged: delete {self.folder} to begin again") from None
        parts = self.find_done()
        names = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        if names and parts and found.get("input") != STREAM:
            changes = "; ".join(f"{name} was {_show(found.get(name))}, is {_show(wanted.get(name))}" for name in names)
            raise InputError(
                f"{self.folder} has parts of another job: {changes}. Set them as they were to go on with it, "
                f"choose another --output, or delete {self.folder} to begin again"
            )
        for each in self.folder.iterdir():
            if each.suffix == _TMP or (_PART_NAME.fullmatch(each.name) and found["input"] == STREAM):
                each.unlink()
        replace_file(path, lambda tmp: tmp.write_text(json.dumps(wanted, indent=1)))

    def find_done(self) -> dict[int, PartSummary]:
        """The parts that are done, by their numbers; `rows` is 0, since it stands in the plan."""
        found = {}
        for path in self.folder.iterdir():
            if name := _PART_NAME.fullmatch(path.name):
                found[int(name[1])] = PartSummary(int(name[1]), 0, int(name[2]))
        return found

    def name_part(self, number: int, errors: int) -> Path:
        return self.folder / f"{number:08}-errors-{errors}{self.output.suffix.lower()}"

    def finish(self) -> None:
        """Join all parts to the output, and remove their folder.

        Raises:
            OSError: the output cannot be written.
        """
        paths = sorted(path for path in self.folder.iterdir() if _PART_NAME.fullmatch(path.name))
        output = open_output(self.output)
        joined = self.folder / _JOINED
        output.merge(paths, joined)
        _sync(joined)
        joined.rename(self.output)
        _sync(self.output.absolute().parent)
        shutil.rmtree(self.folder)


def _show(value: object) -> str:
    return json.dumps(value)[:200]


class PartWorker:
    """Runs parts of a job in one event loop. A part is done once its file has its name."""

    def __init__(self, job: Job, predictor: Predictor) -> None:
        self._job = job
        self._predictor = predictor
        self._source = None if job.is_stream else job.open_source(predictor.extra_names)
        self._output = open_output(job.output, predictor.extra_names)
        # One at a time: a source reads parts that follow each other.
        self._files = ThreadPoolExecutor(1, "files")

    async def run(self, part: Part) -> PartSummary:
        """
        Raises:
            RunnerError: the model has died, or the input cannot be read.
            OSError: the part cannot be written.
        """
        assert self._source is not None
        rows = await self._run_in_thread(self._source.read, part)
        return await self.write(part.number, rows, await self._predictor.predict(rows.texts))

    async def write(self, number: int, rows: Rows, answers: Sequence[Answer]) -> PartSummary:
        """Write a part.

        Raises:
            OSError: the part cannot be written.
        """
        errors = count_errors(answers)
        path = self._job.name_part(number, errors)
        await self._run_in_thread(replace_file, path, lambda tmp: self._output.write(tmp, rows, answers))
        return PartSummary(number, len(rows), errors)

    async def _run_in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)

    def __enter__(self) -> PartWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.shutdown(wait=False, cancel_futures=True)


async def run_parts(parts: Sequence[Part], worker: PartWorker, on_done: Callable[[PartSummary], None]) -> None:
    """Run parts, some at once, so that the texts of the next ones always wait for the model.

    Raises:
        ExceptionGroup: of the errors of `PartWorker.run`.
    """
    waiting = iter(parts)

    async def run_some() -> None:
        for part in waiting:
            on_done(await worker.run(part))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_PARTS_AT_ONCE, len(parts))):
            group.create_task(run_some())


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that has its name once it is whole and on the disk."""
    tmp = path.with_name(f"{path.name}.{os.getpid()}{_TMP}")
    write(tmp)
    _sync(tmp)
    tmp.rename(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
