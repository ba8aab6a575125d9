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

_OTHER_WORKER = "another worker could not load it"
# Names come from paths and messages of clients, and errors repeat them.
_LONGEST_LINE = 2**24
_PARENT_GONE = "the server is shutting down: its parent process has ended"


class ChangeClient:
    """The connection to the parent process.

    Attributes:
        is_replacement: whether this worker replaces one that has ended.
    """

    def __init__(
        self, models: Models, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_replacement: bool
    ) -> None:
        self.is_replacement = is_replacement
        self._models = models
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count()
        # The changes of this worker's clients, until they have ended in all workers.
        self._changes: dict[int, asyncio.Future[WiredError | None]] = {}
        self._steps: set[asyncio.Task[None]] = set()
        self._has_ended = False

    @classmethod
    async def connect(cls, path: str, models: Models) -> ChangeClient:
        """Connect, and take over what the other workers serve.

        Raises:
            ModelLoadError: the parent process does not answer.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST_LINE)
            state = json.loads(await reader.readline())
        except (OSError, ValueError) as error:
            raise ModelLoadError(f"the server's parent process does not answer: {type(error).__name__}") from error
        models.take_over({(name, version) for name, version in state["declared"]}, state["loaded"])
        client = cls(models, reader, writer, state["is_replacement"])
        models.change_all = client.change
        return client

    async def change(self, verb: str, name: str) -> None:
        """Load or unload a model in all workers.

        Raises:
            RunnerError: a worker cannot do that.
        """
        if self._has_ended:
            raise ModelLoadError(_PARENT_GONE)
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
            self._has_ended = True
            for ended in self._changes.values():
                if not ended.done():
                    ended.set_result([ModelLoadError.__name__, _PARENT_GONE])
            self._writer.close()

    async def _do_step(self, message: Mapping[str, Any]) -> None:
        verb, name = message["do"], message["name"]
        error: WiredError | None = [ModelLoadError.__name__, f"{verb} has not ended"]
        try:
            match verb:
                case "stage":
                    await self._models.stage(name)
                case "commit":
                    self._models.commit(name)
                case "discard":
                    await self._models.discard(name, _OTHER_WORKER)
                case "unload":
                    await self._models.unload_locally(name)
            error = None
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
