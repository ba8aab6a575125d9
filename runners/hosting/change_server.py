"""In BentoML's parent process: tells all workers to load and unload models, one change of a name after another.

A worker whose client asks for a change sends it here. A load has two phases, so that all workers serve the new model or
all go on with the one before it: each worker stages the model, and commits it once all have staged it. Messages are
lines of JSON over a Unix socket in a folder that only this user can enter:

    worker to parent   {"change": 7, "do": "load", "name": "ner"}        a client's change, numbered by the worker
                       {"step": 3, "error": null}                        the worker has done a step
    parent to worker   {"declared": [["ner", "1"]], "loaded": {"ner": false}, "is_replacement": true}
                                                                         first: what was declared and changed before
                       {"step": 3, "do": "stage", "name": "ner"}         stage, commit, discard or unload
                       {"change": 7, "error": ["ModelLoadError", "..."]} the change has ended in all workers
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError

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
    """Threads that accept workers, read their messages, and make one change of a name at a time."""

    def __init__(self, path: Path, declared: Iterable[tuple[str, str]], workers: int) -> None:
        """
        Args:
            declared: the names and versions of the models that are declared when the server starts.
            workers: how many workers the server starts; further ones replace them.
        """
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._declared = list(declared)
        self._first_workers = workers
        self._workers: list[_Worker] = []
        # Whether a model is loaded, by the names of all that were changed.
        self._loaded: dict[str, bool] = {}
        # Guards all of these.
        self._lock = threading.Lock()
        self._name_locks: dict[str, threading.Lock] = {}
        self._steps = itertools.count()
        threading.Thread(target=self._accept, name="model-changes", daemon=True).start()

    def _accept(self) -> None:
        for number in itertools.count():
            connection, _ = self._listener.accept()
            is_replacement = number >= self._first_workers
            threading.Thread(
                target=self._serve, args=(connection, is_replacement), name="model-changes", daemon=True
            ).start()

    def _serve(self, connection: socket.socket, is_replacement: bool) -> None:
        worker = _Worker(connection)
        with self._lock:
            worker.send({"declared": self._declared, "loaded": self._loaded, "is_replacement": is_replacement})
            self._workers.append(worker)
        try:
            with contextlib.suppress(OSError), connection.makefile("rb") as lines:
                for line in lines:
                    message = json.loads(line)
                    if "change" in message:
                        change = _Change(worker, message["change"], message["do"], message["name"])
                        threading.Thread(target=self._make, args=(change,), name="model-changes", daemon=True).start()
                    else:
                        worker.end_step(message["step"], message["error"])
        finally:
            worker.leave()
            with self._lock:
                self._workers.remove(worker)
            connection.close()

    def _make(self, change: _Change) -> None:
        with self._lock:
            name_lock = self._name_locks.setdefault(change.name, threading.Lock())
        with name_lock:
            with self._lock:
                workers = [*self._workers]
            error = self._do_all(change, workers)
            if error is None:
                with self._lock:
                    self._loaded[change.name] = change.verb == "load"
                    late = [worker for worker in self._workers if worker not in workers]
                # These workers have started meanwhile, and do not know of the change.
                self._do_all(change, late)
        change.worker.send({"change": change.number, "error": error})

    def _do_all(self, change: _Change, workers: Sequence[_Worker]) -> WiredError | None:
        if change.verb == "unload":
            return self._do("unload", change.name, workers)
        error = self._do("stage", change.name, workers)
        if error is not None:
            self._do("discard", change.name, workers)
            return error
        return self._do("commit", change.name, workers)

    def _do(self, verb: str, name: str, workers: Sequence[_Worker]) -> WiredError | None:
        """Let the workers do a step at the same time; the first error, once all have ended."""
        steps = [worker.start_step(next(self._steps), verb, name) for worker in workers]
        errors: Sequence[WiredError | None] = [done.get() for done in steps]
        return next((error for error in errors if error is not None), None)


def start_change_server(configuration: Configuration) -> None:
    """Listen for the workers that this process will start, and tell them where.

    Raises:
        ArgumentsError: there can be no socket in the folder for temporary files.
    """
    declared = [(model.name, model.version) for model in configuration.models]
    try:
        # Only this user may enter it.
        folder = tempfile.mkdtemp(prefix="model-changes-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = Path(folder) / "socket"
        ChangeServer(path, declared, configuration.arguments.workers)
    except OSError as error:
        raise ArgumentsError(
            f"several workers need a socket in the folder for temporary files, {tempfile.gettempdir()}: {error}; "
            "TMPDIR names another"
        ) from error
    os.environ[SOCKET_VARIABLE] = str(path)
