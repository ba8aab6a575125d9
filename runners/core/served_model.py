"""One version of a model: its state, its runner, and the requests that hold the runner."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from runners.core.declarations import ModelDeclaration
from runners.core.errors import RunnerError
from runners.core.log_labels import model_label
from runners.core.sent_answers import release_when_sent

if TYPE_CHECKING:
    from runners.core.runner import Runner

# Makes the runner of a declared model, which loads nothing yet; raises a RunnerError.
CreateRunner = Callable[[ModelDeclaration], "Runner"]

_POLL_SECONDS = 0.02
_NOT_LOADED = "not loaded"
_UNLOADED = "unloaded"


class ModelState(StrEnum):
    """The state of a model, under the names of Triton's repository extension."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


class _HeldRunner:
    """A runner, and the number of requests that have found it and may still call it."""

    __slots__ = ("declaration", "files", "holders", "runner")

    def __init__(self, runner: Runner, declaration: ModelDeclaration) -> None:
        self.runner = runner
        self.declaration = declaration
        # Before the files are read, so that a change while they are read is seen later.
        self.files = declaration.describe_files()
        self.holders = 0

    def is_of(self, declaration: ModelDeclaration) -> bool:
        """Whether loading the declared model now would load the same."""
        return self.declaration.arguments == declaration.arguments and self.files == declaration.describe_files()

    def hold(self) -> Runner:
        self.holders += 1
        release_when_sent(self._release)
        return self.runner

    def _release(self) -> None:
        self.holders -= 1

    async def unload(self) -> None:
        """Unload the runner once the requests that hold it are answered."""
        # Requests end in many places, each of which would have to set an event.
        while self.holders:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        await self.runner.unload()


class ServedModel:
    """One version of a model. Each load makes a new runner, which replaces the one before it once it is ready.

    Attributes:
        declaration: the declaration that the next load will use.
        is_wanted: whether the server is not ready without this model.
    """

    def __init__(self, declaration: ModelDeclaration, create: CreateRunner, is_labelled: bool) -> None:
        """
        Args:
            create: makes the runner of each load.
            is_labelled: whether log records name the model.
        """
        self.declaration = declaration
        self.is_wanted = declaration.load
        self._reason = "" if declaration.load else _NOT_LOADED
        self._create = create
        self._label = f"{self.name}, version={self.version}" if is_labelled else None
        self._changing: ModelState | None = None
        self._current: _HeldRunner | None = None
        self._staged: _HeldRunner | None = None
        # Unloads the model that the last commit has replaced.
        self._retiring: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.declaration.name

    @property
    def names(self) -> Sequence[str]:
        """All names of the model, beginning with `name`."""
        return self.declaration.arguments.names

    @property
    def version(self) -> str:
        return self.declaration.version

    @property
    def state(self) -> ModelState:
        if self.ready:
            # It stays ready while it is loaded again.
            return ModelState.READY
        if self._changing is not None:
            return self._changing
        is_awaited = self.is_wanted and self._current is None and not self._reason
        return ModelState.LOADING if is_awaited else ModelState.UNAVAILABLE

    @property
    def reason(self) -> str:
        """Why the model is unavailable; empty in other states."""
        return self._reason if self.state is ModelState.UNAVAILABLE else ""

    @property
    def runner(self) -> Runner | None:
        """The runner that answers requests, else the one that is being loaded; None if there is neither."""
        held = self._current or self._staged
        return None if held is None else held.runner

    @property
    def ready(self) -> bool:
        is_unloading = self._changing is ModelState.UNLOADING
        return self._current is not None and self._current.runner.ready and not is_unloading

    @property
    def failed(self) -> bool:
        """Whether the model has died, so that the process must end."""
        return self._current is not None and self._current.runner.failed

    @property
    def busy(self) -> bool:
        return self._current is not None and self._current.runner.busy

    def hold(self) -> Runner | None:
        """The runner if it is ready; it is not unloaded before the running request has been answered."""
        if self._current is None or not self.ready:
            return None
        model_label.set(self._label)
        return self._current.hold()

    def set_wanted(self, is_wanted: bool) -> None:
        """Set whether the model is to be loaded, before that begins."""
        self.is_wanted = is_wanted
        self._reason = "" if is_wanted else _UNLOADED

    def create_runner(self) -> None:
        """Make the runner that the first load will use: what it imports is loaded while the server starts.

        Raises:
            RunnerError: the runner does not support the arguments.
        """
        self._staged = _HeldRunner(self._create(self.declaration), self.declaration)

    async def stage(self) -> None:
        """Load the model beside the one that answers requests, unless that is loaded and its files have not changed.

        `commit` or `discard` must follow.

        Raises:
            RunnerError: the model cannot be loaded.
        """
        if self._retiring is not None:
            # There is memory for two versions, not for three.
            await self._retiring
        declaration, current = self.declaration, self._current
        if current is not None and current.runner.loaded and current.is_of(declaration):
            return
        self._changing = ModelState.LOADING
        label = model_label.set(self._label)
        try:
            if self._staged is None:
                # It may download the model.
                await asyncio.to_thread(self.create_runner)
            assert self._staged is not None
            await self._staged.runner.load()
        except RunnerError as error:
            failed, self._staged, self._reason = self._staged, None, str(error)
            if failed is not None:
                await asyncio.to_thread(failed.runner.close)
            raise
        finally:
            self._changing = None
            model_label.reset(label)

    def commit(self) -> None:
        """Let the staged model answer new requests; those under way end on the model before it, which is unloaded."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        before, self._current = self._current, staged
        self._reason, self.is_wanted = "", True
        if before is not None:
            self._retiring = asyncio.ensure_future(before.unload())

    async def discard(self) -> None:
        """Unload the staged model, because another worker cannot load it."""
        staged, self._staged = self._staged, None
        if staged is not None:
            self._reason = "another worker could not load it"
            await staged.unload()

    async def unload(self) -> None:
        """Refuse new requests, and free the memory once those under way are answered."""
        self.is_wanted = False
        current = self._current
        if current is None:
            return
        self._changing = ModelState.UNLOADING
        try:
            await current.unload()
        finally:
            self._current, self._changing, self._reason = None, None, _UNLOADED

    def close(self) -> None:
        """Stop: waiting requests fail. Blocks until the current batch is done."""
        for held in (self._current, self._staged):
            if held is not None:
                held.runner.close()
