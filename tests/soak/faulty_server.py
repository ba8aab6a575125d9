"""A small HTTP server with a fault, which the soak must find.

    python -m tests.soak.faulty_server FAULT

It prints its port. Every answer is the same, but for what the fault makes of it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from enum import StrEnum

# Bytes that a leak keeps of each request: so many that a run of seconds shows it.
_LEAK = 4096
# Bytes that it has from the start, so that a thousandth of them is more than what a run of seconds takes anyhow.
_BALLAST = 2**26
# Every so many requests the other faults happen.
_EVERY = 100
_LABEL = b"GET /metrics"


class Fault(StrEnum):
    """What is wrong with a server."""

    NONE = "none"
    LEAK = "leak"
    THREADS = "threads"
    DESCRIPTORS = "descriptors"
    SILENT = "silent"
    CUT = "cut"
    WRONG = "wrong"
    UNFINISHED = "unfinished"


class _Server:
    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._requests = 0
        self._kept: list[object] = [b"x" * _BALLAST]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection, none of which has a body."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                answer = self._answer(head)
                if answer is None:
                    if self._fault is Fault.CUT:
                        return
                    continue
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(answer), answer))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes | None:
        if head.startswith(_LABEL):
            return b"runtime_running_texts 1\n" if self._fault is Fault.UNFINISHED else b"runtime_running_texts 0\n"
        self._requests += 1
        if self._fault is Fault.LEAK:
            self._kept.append(bytearray(_LEAK))
        if self._requests % _EVERY:
            return b'{"score": 0.5}'
        match self._fault:
            case Fault.THREADS:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            case Fault.DESCRIPTORS:
                self._kept.append(os.open(os.devnull, os.O_RDONLY))
            case Fault.SILENT | Fault.CUT:
                return None
            case Fault.WRONG:
                return b'{"score": 0.6}'
        return b'{"score": 0.5}'


async def main(fault: Fault) -> None:
    server = await asyncio.start_server(_Server(fault).serve, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Fault(sys.argv[1])))
