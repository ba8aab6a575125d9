"""Streams of plain text: their pieces, errors before and within them, and clients that leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message

from protocol.http.streams import stream_text
from runners.core.errors import InputError

SCOPE: Any = {"type": "http", "asgi": {"spec_version": "2.4"}}


async def send_all(pieces: AsyncGenerator[str | None, None], leaves_at: int = -1) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        if len(sent) == leaves_at:
            raise OSError
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async with asyncio.timeout(30):
        response = await stream_text(pieces)
        try:
            await response(SCOPE, receive, send)
        except ClientDisconnect:
            assert leaves_at >= 0
    return sent


async def test_pieces() -> None:
    async def pieces() -> AsyncGenerator[str | None, None]:
        yield None
        yield "É"
        yield "b"

    start, *bodies = await send_all(pieces())
    assert start["status"] == 200
    assert (b"content-type", b"text/plain; charset=utf-8") in start["headers"]
    assert [body["body"] for body in bodies] == ["É".encode(), b"b", b""]
    assert [body["more_body"] for body in bodies] == [True, True, False]


async def test_an_error_before_the_request_is_accepted_is_raised() -> None:
    async def pieces() -> AsyncGenerator[str | None, None]:
        raise InputError("too long")
        yield None

    with pytest.raises(InputError, match="too long"):
        await send_all(pieces())


async def test_an_error_within_leaves_the_answer_without_an_end(caplog: pytest.LogCaptureFixture) -> None:
    """The server closes the connection of such an answer; the log has no text of the error."""

    async def pieces() -> AsyncGenerator[str | None, None]:
        yield None
        yield "a"
        raise RuntimeError("a secret")

    _, *bodies = await send_all(pieces())
    assert [(body["body"], body["more_body"]) for body in bodies] == [(b"a", True)]
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "secret" not in record.getMessage() + str(record.exc_info)


@pytest.mark.parametrize("leaves_at", [0, 1, 2])
async def test_a_client_that_leaves_ends_the_work(leaves_at: int) -> None:
    ended = []

    async def pieces() -> AsyncGenerator[str | None, None]:
        try:
            yield None
            while True:
                yield "a"
        finally:
            ended.append(True)

    assert len(await send_all(pieces(), leaves_at)) == leaves_at
    assert ended == [True]
