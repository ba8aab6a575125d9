"""One version of a model: its state, its runner, and the requests that hold the runner."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from enum import StrEnum
from time import perf_counter
from typing import TYPE_CHECKING

from runners.core.declarations import ModelDeclaration
from runners.core.errors import ModelLoadError, ModelNotReadyError, RunnerError, without_message
from runners.core.log_labels import model_label
from runners.core.request_record import current_record
from runners.core.sent_answers import release_when_sent

if TYPE_CHECKING:
    from runners.core.runner import Runner

logger = logging.getLogger(__name__)

# Makes the runner of a declared model, which loads nothing yet; raises a RunnerError.
CreateRunner = Callable[[ModelDeclaration], "Runner"]

_POLL_SECONDS = 0.02
# Seconds that requests may hold a model which is unloaded: long generations, and clients that read slowly.
_LONGEST_HOLD = 600.0
_NOT_LOADED = "not loaded"
_UNLOADED = "unloaded"
_DEAD = "it has died"
_PREDICTOR_NOT_READY = "its predictor is not ready"
_STUCK = "the thread or engine that runs it is stuck"


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

    def is_unchanged(self, declaration: ModelDeclaration) -> bool:
        """Whether loading the declared model now would load the same; it reads the states of files."""
        return self.declaration.arguments == declaration.arguments and self.files == declaration.describe_files()

    def hold(self) -> Runner:
        self.holders += 1
        release_when_sent(self._release)
        return self.runner

    def _release(self) -> None:
        self.holders -= 1

    async def unload(self) -> None:
        """Unload the runner once the requests that hold it are answered, after `_LONGEST_HOLD` at the latest."""
        deadline = asyncio.get_running_loop().time() + _LONGEST_HOLD
        # Requests end in many places, each of which would have to set an event.
        while self.holders and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)
        await self.runner.unload()


class ServedModel:
    """One version of a model. Each load makes a new runner, which replaces the one before it once it is ready.

    Attributes:
        declaration: the declaration of the model that answers requests, or of the first one.
        declared: the declaration that the next load will use.
        is_wanted: whether the server is not ready without this model.
        is_removed: whether the repository does not have it any more.
        load_seconds: how long its last load took, with a download if there was one; None before the first.
    """

    def __init__(self, declaration: ModelDeclaration, create: CreateRunner, is_labelled: bool) -> None:
        """
        Args:
            create: makes the runner of each load.
            is_labelled: whether log records name the model.
        """
        self.declaration = self.declared = declaration
        self.is_wanted = declaration.load
        self.is_removed = False
        self.load_seconds: float | None = None
        self._reason = "" if declaration.load else _NOT_LOADED
        self._create = create
        self._label = f"{self.name}, version={self.version}" if is_labelled else None
        self._changing: ModelState | None = None
        self._current: _HeldRunner | None = None
        self._staged: _HeldRunner | None = None
        # What the last commit has replaced, until it is unloaded.
        self._retired: _HeldRunner | None = None
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
    def is_loading(self) -> bool:
        """Whether it is being loaded, or will be, also beside a runner that answers requests."""
        return self._changing is ModelState.LOADING or self.state is ModelState.LOADING

    @property
    def reason(self) -> str:
        """Why the model is unavailable; empty in other states."""
        if self.state is not ModelState.UNAVAILABLE:
            return ""
        if self._current is None:
            return self._reason
        if not self._current.runner.loaded:
            return _DEAD
        return _STUCK if self.declaration.arguments.predictor_host is None else _PREDICTOR_NOT_READY

    @property
    def is_expected(self) -> bool:
        """Whether somebody expects the model to be loaded: it is wanted, or its load has failed."""
        return self.is_wanted or self._reason not in ("", _NOT_LOADED, _UNLOADED)

    @property
    def is_held(self) -> bool:
        """Whether there is a runner of it."""
        return any(held is not None for held in (self._current, self._staged, self._retired))

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

    def hold(self, name: str) -> Runner:
        """The runner, which is not unloaded before the running request has been answered.

        Args:
            name: the model's name in the request, for messages.

        Raises:
            ModelNotReadyError: the model is not ready.
        """
        if (record := current_record.get()) is not None:
            record.model_name = self.name
        if self._current is None or not self.ready:
            raise ModelNotReadyError.of_model(name)
        model_label.set(self._label)
        return self._current.hold()

    def set_wanted(self, is_wanted: bool) -> None:
        """Set whether the model is to be loaded, before that begins."""
        self.is_wanted = is_wanted
        self._reason = "" if is_wanted else _UNLOADED

    def create_runner(self) -> None:
        """Make the runner that the next load will use: what it imports is loaded while the server starts.

        Raises:
            RunnerError: the runner does not support the arguments.
        """
        self._staged = _HeldRunner(self._create(self.declared), self.declared)

    async def stage(self) -> None:
        """Load the model beside the one that answers requests, unless that is loaded and its files have not changed.

        `commit` or `discard` must follow.

        Raises:
            RunnerError: the model cannot be loaded.
        """
        # There is memory for two versions, not for three.
        await self._wait_for_retired()
        current = self._current
        is_loaded = current is not None and current.runner.loaded
        if current is not None and is_loaded and await asyncio.to_thread(current.is_unchanged, self.declared):
            return
        self._changing = ModelState.LOADING
        started = perf_counter()
        label = model_label.set(self._label)
        try:
            if self._staged is None:
                # It may download the model.
                await asyncio.to_thread(self.create_runner)
            assert self._staged is not None
            await self._staged.runner.load()
            self.load_seconds = perf_counter() - started
        except Exception as error:
            is_expected = isinstance(error, RunnerError)
            self._reason = str(error) if is_expected else f"{self.name} cannot be loaded: {type(error).__name__}"
            failed, self._staged = self._staged, None
            if failed is not None:
                await asyncio.to_thread(failed.runner.close)
            if is_expected:
                raise
            logger.exception("loading failed")
            raise ModelLoadError(self._reason) from error
        finally:
            self._changing = None
            model_label.reset(label)

    def commit(self) -> None:
        """Let the staged model answer new requests; those under way end on the model before it, which is unloaded."""
        staged, self._staged = self._staged, None
        if staged is None:
            return
        self.retire()
        self._current, self.declaration = staged, staged.declaration
        self._reason, self.is_wanted = "", True

    def retire(self) -> None:
        """Let no new request find the model that answers them, and unload it in the background."""
        self._retired, self._current = self._current, None
        if self._retired is not None:
            self._retiring = asyncio.create_task(self._unload_retired(self._retired))

    async def _unload_retired(self, retired: _HeldRunner) -> None:
        try:
            await retired.unload()
        except Exception as error:
            logger.error("a replaced model was not unloaded: %s", type(error).__name__, exc_info=without_message(error))
        self._retired = None

    async def _wait_for_retired(self) -> None:
        if self._retiring is not None:
            await self._retiring
            self._retiring = None

    async def discard(self, reason: str) -> None:
        """Unload the staged model.

        Args:
            reason: why the model is not loaded.
        """
        staged, self._staged = self._staged, None
        if staged is not None:
            self._reason = reason
            await staged.runner.unload()

    async def unload(self) -> None:
        """Refuse new requests, and free the memory once those under way are answered."""
        self.is_wanted = False
        await self.discard(_UNLOADED)
        if self._current is not None:
            self._changing = ModelState.UNLOADING
            try:
                await self._current.unload()
            finally:
                self._changing = None
            self._current = None
        self._reason = _UNLOADED
        await self._wait_for_retired()

    def close(self) -> None:
        """Stop: waiting requests fail. Blocks until the current batch is done."""
        for held in (self._current, self._staged, self._retired):
            if held is not None:
                held.runner.close()
