"""Rows of a stream, answered in order and as they come; what waits is bounded."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias

from protocol.bulk.lines import BOM, LONGEST_LINE, Parsed, parse_json, parse_lines, parse_text
from protocol.bulk.predictor import Answer, Predictor
from protocol.bulk.rows import RecordRows, Rows
from protocol.bulk.source import Source
from runners.core.predictions import TextInput

# Lines that are answered together, if so many have come.
_LINES_AT_ONCE = 256
_READ_BYTES = 2**16
# Groups of lines that wait, and groups that are answered at once.
_WAITING_GROUPS = 16
_AT_ONCE = 16

WriteRows: TypeAlias = Callable[[Rows, Sequence[Answer]], Awaitable[None]]


async def answer_rows(groups: AsyncIterator[Rows], predictor: Predictor, write: WriteRows) -> None:
    """Answer groups of rows, several at once, and write the answers in order.

    Raises:
        ExceptionGroup: of a RunnerError, if the model has died or the input cannot be read, or of what `write` raises.
    """
    running: asyncio.Queue[tuple[Rows, asyncio.Task[list[Answer]]] | None] = asyncio.Queue(_AT_ONCE)

    async def write_all() -> None:
        while (answered := await running.get()) is not None:
            rows, task = answered
            await write(rows, await task)

    async with asyncio.TaskGroup() as group:
        group.create_task(write_all())
        async for rows in groups:
            await running.put((rows, group.create_task(predictor.predict(rows.texts))))
        await running.put(None)


async def read_parts(source: Source, part_rows: int) -> AsyncIterator[Rows]:
    """The rows of a file, in its parts.

    Raises:
        InputError: as `Source.plan` and `Source.read`.
    """
    for part in await asyncio.to_thread(source.plan, part_rows):
        yield await asyncio.to_thread(source.read, part)


async def give_texts(texts: Sequence[str], text_column: str) -> AsyncIterator[Rows]:
    """Rows of texts that are in memory."""
    for start in range(0, len(texts), _LINES_AT_ONCE):
        some = texts[start : start + _LINES_AT_ONCE]
        yield RecordRows([{text_column: text} for text in some], [TextInput(text) for text in some])


async def read_stream(descriptor: int, text_column: str, written: Sequence[str]) -> AsyncIterator[Rows]:
    """The rows of a stream of lines, which are JSON if the first one that is not empty is.

    Args:
        descriptor: that of the stream.
        written: the columns that the answers add.
    """
    number, parse = 1, None
    async for group in _StreamLines(descriptor).read():
        if parse is None and (first := next((line for line in group if line.strip()), None)) is not None:
            parse = _choose_parser(first, text_column, written)
        if parse is not None and len(rows := parse_lines(enumerate(group, number), parse)):
            yield rows
        number += len(group)


def _choose_parser(line: bytes, text_column: str, written: Sequence[str]) -> Callable[[bytes, int], Parsed]:
    if line.lstrip()[:1] in (b"{", b"[", b'"'):
        return lambda line, number: parse_json(line, number, text_column, written)
    return lambda line, number: parse_text(line, number, text_column)


class _StreamLines:
    """The lines of a stream, which a thread reads: as many as have come, and few that wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._groups: asyncio.Queue[list[bytes] | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_WAITING_GROUPS)
        # It may wait for a line for as long as the process runs.
        threading.Thread(target=self._read, name="input", daemon=True).start()

    def _read(self) -> None:
        rest, is_first = b"", True
        while data := os.read(self._descriptor, _READ_BYTES):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > LONGEST_LINE:
                # What follows on that line is another row, which is no JSON.
                lines, rest = [*lines, rest], b""
            if lines and is_first:
                lines[0], is_first = lines[0].removeprefix(BOM), False
            for start in range(0, len(lines), _LINES_AT_ONCE):
                self._give(lines[start : start + _LINES_AT_ONCE])
        if rest:
            self._give([rest.removeprefix(BOM) if is_first else rest])
        self._give(None)

    def _give(self, group: list[bytes] | None) -> None:
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._groups.put_nowait, group)

    async def read(self) -> AsyncIterator[list[bytes]]:
        """Groups of lines without their ends."""
        while (group := await self._groups.get()) is not None:
            self._room.release()
            yield group
