"""The ways of `predict`: a file to a file, a stream to a file, and anything to the standard output."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from itertools import count
from pathlib import Path

from protocol.bulk.formats import open_source
from protocol.bulk.job import STREAM, Job, PartWorker, name_file, run_parts
from protocol.bulk.outputs import JsonOutput, count_errors
from protocol.bulk.parts import PART_ROWS, Part, PartSummary
from protocol.bulk.predictor import Answer, Predictor
from protocol.bulk.progress import Progress
from protocol.bulk.rows import NO_ROWS, Rows, claim_columns
from protocol.bulk.streams import answer_rows, give_texts, read_parts, read_stream
from runners.core.argument_groups import PredictArguments


async def run_job(job: Job, part_rows: int, predictor: Predictor, progress: Progress) -> None:
    """Do the parts of a job that are not done, and join all of them."""
    parts, total = await asyncio.to_thread(begin_job, job, part_rows, progress, predictor.extra_names)

    def note(summary: PartSummary) -> None:
        progress.add(summary.rows, summary.errors)

    with PartWorker(job, predictor) as worker:
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
    arguments: PredictArguments, texts: Sequence[str], job: Job, predictor: Predictor, progress: Progress
) -> None:
    """Write the answers to a stream, or to the texts of the command line, to a file."""
    progress.start()
    numbers = count()
    with PartWorker(job, predictor) as worker:

        async def write(rows: Rows, answers: Sequence[Answer]) -> None:
            summary = await worker.write(next(numbers), rows, answers)
            progress.add(summary.rows, summary.errors)

        await answer_rows(_read_groups(arguments, texts, predictor.extra_names), predictor, write)
        if not progress.rows:
            await worker.write(next(numbers), NO_ROWS, ())
    await asyncio.to_thread(job.finish, next(numbers))


async def answer_stream(
    arguments: PredictArguments, texts: Sequence[str], descriptor: int, predictor: Predictor, progress: Progress
) -> None:
    """Write the answers to the standard output.

    Args:
        descriptor: that of the standard output.
    """
    progress.start(shows_bar=not os.isatty(descriptor))
    output = JsonOutput(predictor.extra_names)

    async def write(rows: Rows, answers: Sequence[Answer]) -> None:
        await asyncio.to_thread(_write_all, descriptor, output.render(rows, answers))
        progress.add(len(rows), count_errors(answers))

    await answer_rows(_read_groups(arguments, texts, predictor.extra_names), predictor, write)


def _read_groups(arguments: PredictArguments, texts: Sequence[str], extra_names: Sequence[str]) -> AsyncIterator[Rows]:
    """The rows of the command line, of a stream or of a file."""
    written = claim_columns(arguments.text_column, extra_names)
    if texts:
        return give_texts(texts, arguments.text_column)
    if arguments.input is None or arguments.input == STREAM:
        return read_stream(0, arguments.text_column, written)
    return read_parts(open_source(Path(arguments.input), arguments.text_column, written), PART_ROWS)


def _write_all(descriptor: int, data: bytes) -> None:
    with name_file(Path("the standard output")):
        while data:
            data = data[os.write(descriptor, data) :]
