"""Streams: the headers at once, comments while nothing is sent, an end when the client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.types import Message

from protocol.http import sse

SCOPE: Any = {"type": "http", "asgi": {"spec_version": "2.3"}}


async def test_headers_come_with_the_acceptance_and_comments_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.01)
    sent: list[Message] = []

    async with asyncio.timeout(30):
        commented = asyncio.Event()

        async def events() -> AsyncGenerator[dict[str, Any] | None, None]:
            yield None
            assert sent[0]["type"] == "http.response.start"
            await commented.wait()
            yield {"text": "a"}

        async def send(message: Message) -> None:
            sent.append(message)
            if message.get("body") == b": keep-alive\n\n":
                commented.set()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        response = await sse.stream_events(events(), lambda _: None, "[DONE]")
        await response(SCOPE, receive, send)
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[0] == b": keep-alive\n\n"
    assert [body for body in bodies if not body.startswith(b":")] == [
        b'data: {"text":"a"}\n\n',
        b"data: [DONE]\n\n",
        b"",
    ]
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


async def test_a_client_that_leaves_before_the_first_event_ends_the_work() -> None:
    ended = []

    async with asyncio.timeout(30):

        async def events() -> AsyncGenerator[dict[str, Any] | None, None]:
            try:
                yield None
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        async def send(_: Message) -> None:
            await asyncio.sleep(0)

        response = await sse.stream_events(events(), lambda _: None)
        await response(SCOPE, receive, send)
        assert ended == [True]
