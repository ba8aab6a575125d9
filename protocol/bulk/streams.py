"""Rows of a stream, answered in order and as they come; what waits is bounded."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TypeVar

from protocol.bulk.lines import (
    BOM,
    LONGEST_LINE,
    Parsed,
    check_encoding,
    check_first_json,
    describe_long_line,
    parse_json,
    parse_lines,
    parse_text,
)
from protocol.bulk.rows import RecordRows, Rows, is_utf8, replace_bytes
from protocol.bulk.source import Source, changed_error, identify_file
from protocol.bulk.text_answerer import Answer, TextAnswerer
from runners.core.errors import InputError, brief
from runners.core.predictions import TextInput

# Lines that are answered together, if so many have come.
_LINES_AT_ONCE = 256
_READ_BYTES = 2**16
# Groups of lines that wait, and groups that are answered at once.
_WAITING_GROUPS = 16
_AT_ONCE = 16

R = TypeVar("R", bound=Rows)


async def answer_rows(
    groups: AsyncIterator[R], answerer: TextAnswerer, write: Callable[[R, Sequence[Answer]], Awaitable[None]]
) -> None:
    """Answer groups of rows, several at once, and write the answers in order.

    Raises:
        ExceptionGroup: of a RunnerError, if the model has died or the input cannot be read, or of what `write` raises.
    """
    running: asyncio.Queue[tuple[R, asyncio.Task[list[Answer]]] | None] = asyncio.Queue(_AT_ONCE)

    async def write_all() -> None:
        while (answered := await running.get()) is not None:
            rows, task = answered
            await write(rows, await task)

    async with asyncio.TaskGroup() as group:
        group.create_task(write_all())
        async for rows in groups:
            await running.put((rows, group.create_task(answerer.answer(rows.texts))))
        await running.put(None)


async def read_parts(source: Source, part_rows: int) -> AsyncIterator[Rows]:
    """The rows of a file, in its parts.

    Raises:
        InputError: as of `Source`.
    """
    found = identify_file(source.path)
    source.check_start()
    for part in await asyncio.to_thread(source.plan, part_rows):
        yield await asyncio.to_thread(source.read, part)
    if identify_file(source.path) != found:
        raise changed_error(source.path)


async def give_texts(texts: Sequence[str], text_column: str) -> AsyncIterator[RecordRows]:
    """Rows of texts that are in memory."""
    for start in range(0, len(texts), _LINES_AT_ONCE):
        some = texts[start : start + _LINES_AT_ONCE]
        yield RecordRows(
            [{text_column: replace_bytes(text)} for text in some],
            [TextInput(text) if is_utf8(text) else InputError("the text is not UTF-8") for text in some],
        )


async def read_stream(descriptor: int, text_column: str, answer_columns: Sequence[str]) -> AsyncIterator[RecordRows]:
    """The rows of a stream of lines, which are JSON if the first one that is not empty is.

    Args:
        descriptor: that of the stream.
        answer_columns: the columns that the answers add.

    Raises:
        InputError: the stream cannot be read, a line is too long, or the first row is wrong as that of a file can be.
    """
    number, parse = 1, None
    async for group in _StreamLines(descriptor).read():
        first = next((place for place, line in enumerate(group) if line.strip()), None) if parse is None else None
        if first is not None:
            parse = _choose_parser(group[first], number + first, text_column, answer_columns)
        if parse is not None and len(rows := parse_lines(enumerate(group, number), parse)):
            yield rows
        number += len(group)


def _choose_parser(
    first: bytes, number: int, text_column: str, answer_columns: Sequence[str]
) -> Callable[[bytes, int], Parsed]:
    if first.lstrip()[:1] in (b"{", b"[", b'"'):
        check_first_json(first, number, text_column, answer_columns)
        return lambda line, number: parse_json(line, number, text_column, answer_columns)
    return lambda line, number: parse_text(line, number, text_column)


class _StreamLines:
    """The lines of a stream, which a thread reads: as many as have come, and few that wait."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._groups: asyncio.Queue[list[bytes] | Exception | None] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._room = threading.Semaphore(_WAITING_GROUPS)
        # It may wait for a line for as long as the process runs.
        threading.Thread(target=self._read, name="input", daemon=True).start()

    def _read(self) -> None:
        end: Exception | None = None
        try:
            for lines in _read_lines(self._descriptor):
                for start in range(0, len(lines), _LINES_AT_ONCE):
                    self._give(lines[start : start + _LINES_AT_ONCE])
        except Exception as error:
            end = error
        # The loop may be closed.
        with suppress(RuntimeError):
            self._give(end)

    def _give(self, group: list[bytes] | Exception | None) -> None:
        self._room.acquire()
        self._loop.call_soon_threadsafe(self._groups.put_nowait, group)

    async def read(self) -> AsyncIterator[list[bytes]]:
        """Groups of lines without their ends.

        Raises:
            InputError: as `read_stream`.
        """
        while (group := await self._groups.get()) is not None:
            self._room.release()
            if isinstance(group, OSError):
                raise InputError(f"the standard input cannot be read: {group.strerror or brief(group)}") from group
            if isinstance(group, Exception):
                raise group
            yield group


def _read_lines(descriptor: int) -> Iterator[list[bytes]]:
    """Groups of lines without their ends, as they come."""
    pieces: list[bytes] = []
    size, number = 0, 1
    while data := _read_some(descriptor):
        if number == 1 and not pieces:
            check_encoding(data)
        piece, *others = data.split(b"\n")
        pieces.append(piece)
        size += len(piece)
        if size > LONGEST_LINE:
            raise describe_long_line(number)
        if others:
            *lines, rest = b"".join(pieces), *others
            yield [lines[0].removeprefix(BOM), *lines[1:]] if number == 1 else lines
            number += len(lines)
            pieces, size = [rest], len(rest)
    if size:
        rest = b"".join(pieces)
        yield [rest.removeprefix(BOM) if number == 1 else rest]


def _read_some(descriptor: int) -> bytes:
    while True:
        try:
            return os.read(descriptor, _READ_BYTES)
        except BlockingIOError:
            # Whoever else has the stream open has made it so.
            select.select([descriptor], [], [])
