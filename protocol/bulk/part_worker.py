"""Workers, which read parts of a job, let the model answer them, and write the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

from protocol.bulk.durable_file import replace_file
from protocol.bulk.formats import open_output
from protocol.bulk.job import Job
from protocol.bulk.outputs import count_errors
from protocol.bulk.parts import Part, PartSummary
from protocol.bulk.rows import Rows
from protocol.bulk.text_answerer import Answer, TextAnswerer

# While the last texts of a part are answered, those of the next ones wait already.
_PARTS_AT_ONCE = 8

T = TypeVar("T")


class PartWriter:
    """Writes the answers of parts in a thread. A part is done once its file has its name."""

    def __init__(self, job: Job, extra_names: Sequence[str]) -> None:
        """
        Args:
            extra_names: the columns that an answer has beside its prediction.
        """
        self._job = job
        self._output = open_output(job.output, extra_names)
        # One at a time: a source reads parts that follow each other.
        self._files = ThreadPoolExecutor(1, "files")

    async def write(self, number: int, rows: Rows, answers: Sequence[Answer]) -> PartSummary:
        """Write the answers of a part.

        Raises:
            OSError: the part cannot be written.
        """
        path = self._job.part_path(number)
        await self._run_in_thread(replace_file, path, lambda tmp: self._output.write(tmp, rows, answers))
        return PartSummary(number, len(rows), count_errors(answers))

    async def _run_in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._files, function, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # What is being written is in the folder, which may be removed next.
        self._files.shutdown(cancel_futures=True)


class PartWorker(PartWriter):
    """Answers parts of a file in one event loop."""

    def __init__(self, job: Job, answerer: TextAnswerer) -> None:
        """
        Raises:
            InputError: the input has a column that the answers have.
            OSError: the input cannot be read.
        """
        super().__init__(job, answerer.extra_names)
        self._answerer = answerer
        self._source = job.open_source(answerer.extra_names)
        self._source.check_start()

    async def run(self, part: Part) -> PartSummary:
        """Answer a part.

        Raises:
            RunnerError: the model has died, or the input cannot be read or has changed.
            OSError: the part cannot be written.
        """
        rows = await self._run_in_thread(self._source.read, part)
        summary = await self.write(part.number, rows, await self._answerer.answer(rows.texts))
        await self._run_in_thread(self._job.note_done, summary)
        return summary


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
