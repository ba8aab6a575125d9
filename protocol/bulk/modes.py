"""The ways of `predict`: a file to a file, a stream to a file, and anything to the standard output."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

from protocol.bulk.durable_file import add_filename
from protocol.bulk.formats import open_source
from protocol.bulk.job import STREAM, Job
from protocol.bulk.outputs import JsonOutput, count_errors
from protocol.bulk.part_worker import PartWorker, PartWriter, run_parts
from protocol.bulk.parts import PART_BYTES, PART_ROWS, Part, PartSummary
from protocol.bulk.progress import Progress
from protocol.bulk.rows import RecordRows, Rows, claim_columns, count_characters, join_rows
from protocol.bulk.streams import answer_rows, give_texts, read_parts, read_stream
from protocol.bulk.text_answerer import Answer, TextAnswerer
from runners.core.argument_groups import PredictArguments
from runners.core.errors import OutputClosedError
from runners.core.predictions import TextInput


async def run_job(job: Job, part_rows: int, answerer: TextAnswerer, progress: Progress) -> None:
    """Do the parts of a job that are not done, and join all of them."""
    parts, total = await asyncio.to_thread(begin_job, job, part_rows, progress, answerer.extra_names)

    def note(summary: PartSummary) -> None:
        progress.add(summary.rows, summary.errors)

    with PartWorker(job, answerer) as worker:
        await run_parts(parts, worker, note)
    await asyncio.to_thread(job.finish, total)


def begin_job(job: Job, part_rows: int, progress: Progress, extra_names: Sequence[str] = ()) -> tuple[list[Part], int]:
    """The parts of a job that are not done, and how many there are in all."""
    parts = job.plan(part_rows, extra_names)
    done = job.find_done()
    rows = sum(part.rows for part in parts if part.number in done)
    progress.start(sum(part.rows for part in parts), rows, sum(part.errors for part in done.values()))
    return [part for part in parts if part.number not in done], len(parts)


async def fill_file(
    arguments: PredictArguments, texts: Sequence[str], job: Job, answerer: TextAnswerer, progress: Progress
) -> None:
    """Write the answers to a stream, or to the texts of the command line, to a file."""
    progress.start()
    numbers = count()
    waiting: list[tuple[RecordRows, Sequence[Answer]]] = []
    with PartWriter(job, answerer.extra_names) as writer:

        async def write_part() -> None:
            rows = join_rows([rows for rows, _ in waiting])
            answers = [answer for _, some in waiting for answer in some]
            waiting.clear()
            await writer.write(next(numbers), rows, answers)

        async def collect(rows: RecordRows, answers: Sequence[Answer]) -> None:
            waiting.append((rows, answers))
            progress.add(len(rows), count_errors(answers))
            if _is_part([rows for rows, _ in waiting]):
                await write_part()

        await answer_rows(_read_texts(arguments, texts, answerer.extra_names), answerer, collect)
        if waiting or not progress.rows:
            await write_part()
    await asyncio.to_thread(job.finish, next(numbers))


def _is_part(groups: Sequence[Rows]) -> bool:
    """Whether groups of a stream are large enough for a part."""
    texts = [text for rows in groups for text in rows.texts if isinstance(text, TextInput)]
    return sum(map(len, groups)) >= PART_ROWS or sum(map(count_characters, texts)) >= PART_BYTES


async def answer_stream(
    arguments: PredictArguments,
    texts: Sequence[str],
    descriptor: int,
    part_rows: int,
    answerer: TextAnswerer,
    progress: Progress,
) -> None:
    """Write the answers to the standard output.

    Args:
        descriptor: that of the standard output.
        part_rows: most rows of a file that are answered together.
    """
    progress.start(shows_bar=not os.isatty(descriptor))
    output = JsonOutput(answerer.extra_names)

    async def write(rows: Rows, answers: Sequence[Answer]) -> None:
        await asyncio.to_thread(_write_all, descriptor, output.render(rows, answers))
        progress.add(len(rows), count_errors(answers))

    groups: AsyncIterator[Rows]
    if texts or arguments.input in (None, STREAM):
        groups = _read_texts(arguments, texts, answerer.extra_names)
    else:
        answer_columns = claim_columns(arguments.text_column, answerer.extra_names)
        groups = read_parts(open_source(Path(arguments.input), arguments.text_column, answer_columns), part_rows)
    await answer_rows(groups, answerer, write)


def _read_texts(
    arguments: PredictArguments, texts: Sequence[str], extra_names: Sequence[str]
) -> AsyncIterator[RecordRows]:
    """The rows of the command line, or of the standard input."""
    answer_columns = claim_columns(arguments.text_column, extra_names)
    return give_texts(texts, arguments.text_column) if texts else read_stream(0, arguments.text_column, answer_columns)


def _write_all(descriptor: int, data: bytes) -> None:
    """
    Raises:
        OutputClosedError: the reader wants no more.
        OSError: the data cannot be written.
    """
    rest = memoryview(data)
    with add_filename(Path("the standard output")):
        while rest:
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BrokenPipeError as error:
                raise OutputClosedError("the standard output is closed") from error
            except BlockingIOError:
                # Whoever else has the stream open has made it so.
                select.select([], [descriptor], [])
