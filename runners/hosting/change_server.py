"""In BentoML's parent process: tells all workers to load and unload models, one change after another.

A worker whose client asks for a change sends it here. A load has two phases, so that all workers serve the new model or
all go on with the one before it: each worker stages the model, and commits it once all have staged it. Messages are
lines of JSON over a Unix socket in a folder that only this user can enter:

    worker to parent   {"change": 7, "do": "load", "name": "ner"}        a client's change, numbered by the worker
                       {"step": 3, "error": null}                        the worker has done a step
    parent to worker   {"loaded": {"ner": false}}                        first: the changes before the worker started
                       {"step": 3, "do": "stage", "name": "ner"}         stage, commit, discard or unload
                       {"change": 7, "error": ["ModelLoadError", "..."]} the change has ended in all workers
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import logging
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

# The workers inherit it.
SOCKET_VARIABLE = "HUGGINGFACE_RUNTIME_CHANGES"
# An error as a message has it: the name of its type, and its text.
WiredError = list[str]


@dataclass(frozen=True, slots=True)
class _Change:
    """A client's change.

    Attributes:
        number: the worker's number of it.
    """

    worker: _Worker
    number: int
    verb: str
    name: str


class _Worker:
    """The connection to a worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._steps: dict[int, queue.SimpleQueue[WiredError | None]] = {}
        self._is_gone = False

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, unless the worker has ended."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def start_step(self, step: int, verb: str, name: str) -> queue.SimpleQueue[WiredError | None]:
        """Let the worker do a step; the queue gets its error, or None once it is done or the worker has ended."""
        done: queue.SimpleQueue[WiredError | None] = queue.SimpleQueue()
        with self._lock:
            self._steps[step] = done
            is_gone = self._is_gone
        if is_gone:
            done.put(None)
        else:
            self.send({"step": step, "do": verb, "name": name})
        return done

    def end_step(self, step: int, error: WiredError | None) -> None:
        with self._lock:
            done = self._steps.pop(step, None)
        if done is not None:
            done.put(error)

    def leave(self) -> None:
        """End the steps of a worker that has ended: the one that replaces it begins with the latest state."""
        with self._lock:
            self._is_gone = True
            steps, self._steps = self._steps, {}
        for done in steps.values():
            done.put(None)


class ChangeServer:
    """Threads that accept workers, read their messages, and make one change at a time."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._workers: list[_Worker] = []
        # Whether a model is loaded, by the names of all that were changed.
        self._loaded: dict[str, bool] = {}
        # Held while a change is made and while a worker is added, so that each worker knows every change.
        self._lock = threading.Lock()
        self._changes: queue.SimpleQueue[_Change] = queue.SimpleQueue()
        self._steps = itertools.count()
        for target in (self._accept, self._make_changes):
            threading.Thread(target=target, name="model-changes", daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(connection,), name="model-changes", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        worker = _Worker(connection)
        with self._lock:
            worker.send({"loaded": self._loaded})
            self._workers.append(worker)
        try:
            with contextlib.suppress(OSError), connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "change" in message:
                        self._changes.put(_Change(worker, message["change"], message["do"], message["name"]))
                    else:
                        worker.end_step(message["step"], message["error"])
        finally:
            # Without the lock, which a change holds that may wait for this worker.
            worker.leave()
            with self._lock:
                self._workers.remove(worker)
            connection.close()

    def _make_changes(self) -> None:
        while True:
            change = self._changes.get()
            with self._lock:
                error = self._load(change.name) if change.verb == "load" else self._unload(change.name)
            change.worker.send({"change": change.number, "error": error})

    def _load(self, name: str) -> WiredError | None:
        error = self._do("stage", name)
        self._do("commit" if error is None else "discard", name)
        if error is None:
            self._loaded[name] = True
        return error

    def _unload(self, name: str) -> WiredError | None:
        error = self._do("unload", name)
        if error is None:
            self._loaded[name] = False
        return error

    def _do(self, verb: str, name: str) -> WiredError | None:
        """Let all workers do a step at the same time; the first error, once all have ended."""
        steps = [worker.start_step(next(self._steps), verb, name) for worker in self._workers]
        errors: Sequence[WiredError | None] = [done.get() for done in steps]
        return next((error for error in errors if error is not None), None)


def start_change_server() -> None:
    """Listen for the workers that this process will start, and tell them where."""
    # Only this user may enter it.
    folder = tempfile.mkdtemp(prefix="model-changes-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / "socket"
    ChangeServer(path)
    os.environ[SOCKET_VARIABLE] = str(path)
