"""The models of this server by name, their states, and their loading and unloading."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from runners.core.errors import ModelNotFoundError, ModelNotReadyError, RunnerError

if TYPE_CHECKING:
    from runners.core.runner import Runner


class ModelState(StrEnum):
    """The state of a model, under the names of Triton's repository extension."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


class _Slot:
    """A model with its state."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.changing: ModelState | None = ModelState.LOADING
        self.reason = ""
        self.lock = asyncio.Lock()

    @property
    def state(self) -> ModelState:
        if self.changing is not None:
            return self.changing
        return ModelState.READY if self.runner.ready else ModelState.UNAVAILABLE


class Models:
    """The models of this server by name; they are loaded and unloaded one after another."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        # Whether models can be loaded and unloaded: not with several workers, each of which has its own models.
        self.can_reload = True
        slots = [_Slot(runner) for runner in runners]
        self._slots: Mapping[str, _Slot] = {name: slot for slot in slots for name in slot.runner.names}

    @property
    def names(self) -> list[str]:
        return list(self._slots)

    @property
    def first(self) -> Runner:
        """The model of requests that name none."""
        return next(iter(self._slots.values())).runner

    @property
    def ready(self) -> bool:
        """Whether all models are ready, as the Open Inference Protocol defines a ready server."""
        return all(slot.runner.ready for slot in self._slots.values())

    @property
    def busy(self) -> bool:
        """Whether a model has running requests."""
        return any(slot.runner.busy for slot in self._slots.values())

    @property
    def live(self) -> bool:
        """Whether no model has died."""
        return not any(slot.runner.failed for slot in self._slots.values())

    def find(self, name: str) -> Runner | None:
        slot = self._slots.get(name)
        return None if slot is None else slot.runner

    def state(self, name: str) -> tuple[ModelState, str]:
        """A model's state, and the reason if it is unavailable."""
        slot = self._slots[name]
        return slot.state, slot.reason if slot.state is ModelState.UNAVAILABLE else ""

    async def load(self, name: str) -> None:
        """Load a model, unless it is loaded.

        Raises:
            RunnerError: the model cannot be loaded.
        """
        slot = self._slots[name]
        async with slot.lock:
            if slot.runner.ready:
                return
            slot.changing = ModelState.LOADING
            try:
                await slot.runner.load()
            except RunnerError as error:
                slot.reason = str(error)
                raise
            finally:
                slot.changing = None
            slot.reason = ""

    async def unload(self, name: str) -> None:
        """Unload a model, once its requests have ended."""
        slot = self._slots[name]
        async with slot.lock:
            slot.changing = ModelState.UNLOADING
            try:
                await slot.runner.unload()
                slot.reason = "unloaded"
            finally:
                slot.changing = None


def find_model(models: Models, name: str) -> Runner:
    """The model of that name.

    Raises:
        ModelNotFoundError: there is none.
    """
    runner = models.find(name)
    if runner is None:
        raise ModelNotFoundError(name)
    return runner


def find_ready_model(models: Models, name: str) -> Runner:
    """The model of that name, if it is loaded; protocols call this before they read a request's body.

    Raises:
        ModelNotFoundError: there is none.
        ModelNotReadyError: it is not loaded.
    """
    runner = find_model(models, name)
    check_ready(runner)
    return runner


def check_ready(runner: Runner) -> None:
    """
    Raises:
        ModelNotReadyError: the model is not loaded.
    """
    if not runner.ready:
        raise ModelNotReadyError.of_model(runner.name)
