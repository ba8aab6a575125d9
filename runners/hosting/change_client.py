"""In a worker: passes clients' changes of models to BentoML's parent process, and makes those of all workers.

`change_server.py` describes the messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Mapping
from typing import Any

from runners.core import errors
from runners.core.errors import ModelLoadError, RunnerError
from runners.core.models import Models
from runners.hosting.change_server import WiredError

_PARENT_GONE = "the server is shutting down: its parent process has ended"


class ChangeClient:
    """The connection to the parent process."""

    def __init__(self, models: Models, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._models = models
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        # The changes of this worker's clients, until they have ended in all workers.
        self._changes: dict[int, asyncio.Future[WiredError | None]] = {}
        self._steps: set[asyncio.Task[None]] = set()

    @classmethod
    async def connect(cls, path: str, models: Models) -> ChangeClient:
        """Connect, and take over what was changed before this worker started."""
        reader, writer = await asyncio.open_unix_connection(path)
        models.set_wanted(json.loads(await reader.readline())["loaded"])
        client = cls(models, reader, writer)
        models.change_all = client.change
        return client

    async def change(self, verb: str, name: str) -> None:
        """Load or unload a model in all workers.

        Raises:
            RunnerError: a worker cannot do that.
        """
        number = next(self._numbers)
        ended: asyncio.Future[WiredError | None] = asyncio.get_running_loop().create_future()
        self._changes[number] = ended
        try:
            self._send({"change": number, "do": verb, "name": name})
            error = await ended
        finally:
            del self._changes[number]
        if error is not None:
            raise _read_error(error)

    async def run(self) -> None:
        """Make the changes that the parent process asks for, until it ends."""
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                if "step" in message:
                    # A stage takes long; a worker may get the end of another change meanwhile.
                    task = asyncio.create_task(self._do_step(message))
                    self._steps.add(task)
                    task.add_done_callback(self._steps.discard)
                elif (ended := self._changes.get(message["change"])) is not None and not ended.done():
                    ended.set_result(message["error"])
        finally:
            for ended in self._changes.values():
                if not ended.done():
                    ended.set_result([ModelLoadError.__name__, _PARENT_GONE])
            self._writer.close()

    async def _do_step(self, message: Mapping[str, Any]) -> None:
        verb, name = message["do"], message["name"]
        error: WiredError | None = None
        try:
            match verb:
                case "stage":
                    await self._models.stage(name)
                case "commit":
                    self._models.commit(name)
                case "discard":
                    await self._models.discard(name)
                case "unload":
                    await self._models.unload_here(name)
        except RunnerError as failure:
            error = [type(failure).__name__, str(failure)]
        except Exception as failure:
            error = [ModelLoadError.__name__, f"{verb} failed: {type(failure).__name__}"]
            raise
        finally:
            self._send({"step": message["step"], "error": error})

    def _send(self, message: Mapping[str, Any]) -> None:
        with contextlib.suppress(ConnectionError):
            self._writer.write(json.dumps(message).encode() + b"\n")


def _read_error(error: WiredError) -> RunnerError:
    """The error of another worker, of the same kind."""
    name, message = error
    kind: type[RunnerError] = getattr(errors, name)
    made = kind.__new__(kind)
    RunnerError.__init__(made, message)
    return made
