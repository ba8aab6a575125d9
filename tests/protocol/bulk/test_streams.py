"""A stream of lines is read as it comes, and what ends it ends the job."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from protocol.bulk.formats import open_source
from protocol.bulk.rows import Rows, list_answer_columns
from protocol.bulk.streams import give_texts, read_parts, read_stream
from runners.core.errors import InputError
from runners.core.predictions import TextInput


def collect(groups: AsyncIterator[Rows]) -> list[tuple[Any, TextInput | str]]:
    """The columns of each row, and its text or its error."""

    async def read() -> list[Rows]:
        return [rows async for rows in groups]

    return [
        (record, str(text) if isinstance(text, InputError) else text)
        for rows in asyncio.run(read())
        for record, text in zip(rows.to_records(), rows.texts, strict=True)
    ]


def read_all(content: bytes, blocks: bool = True) -> list[tuple[Any, TextInput | str]]:
    """The rows of a pipe."""
    reader, writer = os.pipe()
    os.set_blocking(reader, blocks)

    def write() -> None:
        with suppress(BrokenPipeError), open(writer, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        return collect(read_stream(reader, "text", list_answer_columns()))
    finally:
        os.close(reader)
        thread.join()


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize(
    ("content", "texts"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a\n\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa", ["a"]),
        (b'\xef\xbb\xbf{"text": "a"}\n"b"', ["a", "b"]),
        (b"\n" + b"a" * 10**7 + b"\nb", ["a" * 10**7, "b"]),
        (b"a\n" * 10**4, ["a"] * 10**4),
    ],
    ids=["nothing", "empty lines", "lines", "a mark", "JSON", "a long line", "many lines"],
)
def test_lines(content: bytes, texts: list[str], blocks: bool) -> None:
    assert [text for _, text in read_all(content, blocks)] == [TextInput(text) for text in texts]


@pytest.mark.parametrize("end", [b"", b"\nb"])
def test_a_line_that_is_too_long(end: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.bulk.streams.LONGEST_LINE", 2**20)
    with pytest.raises(InputError, match="line 2 has more than "):
        read_all(b"a\n" + b"a" * 2**21 + end)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_stream_of_another_encoding(encoding: str) -> None:
    with pytest.raises(InputError, match="the input is UTF-16 or UTF-32: convert it to UTF-8"):
        read_all("a\nb\n".encode(encoding))


def test_a_stream_that_cannot_be_read(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InputError, match="the standard input cannot be read: Is a directory"):
            collect(read_stream(descriptor, "text", list_answer_columns()))
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("change", ["b\na\n", "a\n"])
def test_a_file_that_changes_meanwhile(change: str, tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("a\nb\n")

    async def read() -> None:
        groups = read_parts(open_source(path, "text", list_answer_columns()), 1)
        assert len(await anext(groups)) == 1
        path.write_text(change)
        async for _ in groups:
            pass

    with pytest.raises(InputError, match=r"in.txt has changed during the job: begin again"):
        asyncio.run(read())


def test_texts_of_the_command_line() -> None:
    assert collect(give_texts(["a", "", os.fsdecode(b"b\xff")], "body")) == [
        ({"body": "a"}, TextInput("a")),
        ({"body": ""}, TextInput("")),
        ({"body": "b\ufffd"}, "the text is not UTF-8"),
    ]
