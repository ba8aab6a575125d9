from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from benchmarks.front_processes.frames import Connection, Message, make_request, read_request

TEXTS = [np.array([101, 7, 102], np.int64), np.array([101, 102], np.int64), np.array([5], np.int64)]


def test_a_request_is_read_as_it_was_made() -> None:
    number, texts = read_request(make_request(7, TEXTS))
    assert number == 7
    assert [text.tolist() for text in texts] == [text.tolist() for text in TEXTS]
    assert {text.dtype for text in texts} == {np.dtype(np.int64)}


@pytest.mark.parametrize("step", [1, 3, 4, 5, 1000])
def test_messages_arrive_whole_however_they_are_divided(step: int) -> None:
    sent = [np.array([number, *range(number)], np.int32) for number in range(5)]
    stream = b"".join(each.nbytes.to_bytes(4, "little") + each.tobytes() for each in sent)
    received: list[list[int]] = []
    connection = Connection(lambda _, message: received.append(message.tolist()))
    for start in range(0, len(stream), step):
        connection.data_received(stream[start : start + step])
    assert received == [each.tolist() for each in sent]


async def test_messages_of_one_iteration_are_sent_together(tmp_path: Path) -> None:
    received = asyncio.Queue[list[int]]()
    loop, path = asyncio.get_running_loop(), str(tmp_path / "socket")

    def answer(connection: Connection, message: Message) -> None:
        connection.send(message + 1)

    server = await loop.create_unix_server(lambda: Connection(answer), path)
    _, asking = await loop.create_unix_connection(
        lambda: Connection(lambda _, message: received.put_nowait(message.tolist())), path
    )
    for number in range(3):
        asking.send(np.array([number], np.int32))
    assert len(asking._waiting) == 6
    assert [await received.get() for _ in range(3)] == [[1], [2], [3]]
    assert not asking._waiting
    server.close()
