"""The models of a server: whether it is ready, and how they are loaded, reloaded and unloaded while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from runners.core.declarations import FindDeclarations, ModelDeclaration
from runners.core.errors import ArgumentsError, ModelLoadError, ModelNotReadyError, RunnerError
from runners.core.model_index import ModelIndex
from runners.core.served_model import CreateRunner, ServedModel

if TYPE_CHECKING:
    from runners.core.runner import Runner

logger = logging.getLogger(__name__)

_OTHER_VERSION = "another version could not be loaded"


class Models(ModelIndex):
    """The models of this server; used by one event loop.

    A change of a model holds its name's lock: a load from its stage to its commit or discard.

    Attributes:
        change_all: lets all workers "load" or "unload" the models of a name; None if this is the only worker.
        draining: whether the server ends: it is not ready any more.
        stuck: whether a thread of this worker or of another one is stuck: the server is not live.
        stand_in_is_open: whether another process answers clients with 503 beside this one: the server is not ready.
    """

    def __init__(
        self,
        declarations: Iterable[ModelDeclaration],
        create: CreateRunner,
        find_declarations: FindDeclarations | None = None,
        is_ready_when_any: bool = False,
    ) -> None:
        """
        Args:
            create: makes the runner of a declared model, which loads nothing yet.
            find_declarations: finds the models of the repository while the server runs; None without a repository.
            is_ready_when_any: whether the server is ready once one of its models is.

        Raises:
            ArgumentsError: two models have a name and a version in common.
        """
        super().__init__()
        self.change_all: Callable[[str, str], Coroutine[Any, Any, None]] | None = None
        self.draining = False
        self.stuck = False
        self.stand_in_is_open = False
        self._create = create
        self._find_declarations = find_declarations
        self._is_ready_when_any = is_ready_when_any
        declared = tuple(declarations)
        self._is_labelled = len(declared) > 1 or find_declarations is not None
        for declaration in declared:
            self._declare(declaration)
        self._loads_at_start = any(model.is_wanted for model in self)
        self._locks: dict[str, asyncio.Lock] = {}
        # The names whose loads wait for their commit or discard.
        self._staged: set[str] = set()
        # The changes that clients have asked for, who may leave before they end.
        self._changes: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        """Whether the server is ready; every health endpoint of every protocol asks this or `live`.

        It is while it is live, does not drain, no other process answers in its place, and the models that are to be
        loaded are ready: all of them, or one if the operator says so. A server whose operator declares none to be
        loaded is ready; one whose models have all been unloaded is not.
        """
        return self.live and not self.draining and not self.stand_in_is_open and self.serves

    @property
    def serves(self) -> bool:
        """Whether the models that are to be loaded answer requests."""
        wanted = [model.ready for model in self if model.is_wanted]
        if not wanted:
            return not self._loads_at_start
        return any(wanted) if self._is_ready_when_any else all(wanted)

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded, or will be."""
        return any(model.is_loading for model in self)

    @property
    def loaded(self) -> bool:
        """Whether a model is loaded."""
        return any(model.runner is not None and model.runner.loaded for model in self)

    @property
    def busy(self) -> bool:
        """Whether a model has running requests."""
        return any(model.busy for model in self)

    @property
    def live(self) -> bool:
        """Whether no model has died, and no thread is stuck."""
        return not self.stuck and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a model has died, so that the process must end."""
        return any(model.failed for model in self)

    def create_runners(self) -> None:
        """Make the runners of the models that are to be loaded, which load nothing yet.

        Raises:
            RunnerError: the only runner does not support its arguments.
        """
        wanted = [model for model in self if model.is_wanted]
        for model in wanted:
            try:
                model.create_runner()
            except RunnerError:
                # Beside others, the load will raise the error again, and the operator says what follows.
                if len(wanted) == 1:
                    raise

    def take_over(self, declared: Collection[tuple[str, str]], loaded: Mapping[str, bool]) -> None:
        """Load at the start what the other workers serve.

        Args:
            declared: the names and versions that were declared when the first worker started; others are not loaded.
            loaded: the names that clients have loaded or unloaded since then, and whether they are loaded.
        """
        for model in self:
            is_declared = model.is_wanted and (model.name, model.version) in declared
            model.set_wanted(loaded.get(model.name, is_declared))

    async def load_at_start(self, model: ServedModel) -> None:
        """Load a model when this worker starts, unless it has been unloaded meanwhile.

        Raises:
            RunnerError: the model cannot be loaded.
        """
        async with self._lock(model.name):
            if model.is_wanted:
                await model.stage()
                model.commit()

    async def load(self, name: str) -> None:
        """Load all versions of a model, in all workers; one that is loaded is loaded again if its files have changed.

        It goes on if the caller is cancelled.

        Raises:
            ModelNotFoundError: there is no model of that name.
            RunnerError: the model cannot be loaded; the one that was loaded before goes on.
        """
        await self._change("load", name)

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, in all workers, once their requests have ended.

        It goes on if the caller is cancelled.

        Raises:
            ModelNotFoundError: there is no model of that name.
        """
        await self._change("unload", name)

    async def stage(self, name: str) -> None:
        """Load the versions of a model beside those that answer requests; `commit` or `discard` must follow.

        Args:
            name: the first of the model's names.

        Raises:
            ModelNotFoundError: there is no model of that name.
            RunnerError: a version cannot be loaded; none is staged.
        """
        lock = self._lock(name)
        await lock.acquire()
        try:
            await self.refresh(name)
            self.find(name)
            remaining = [model for model in self.list_versions(name) if not model.is_removed]
            if not remaining:
                raise ModelLoadError(f"the repository has no model {name} any more")
            for model in remaining:
                await model.stage()
        except BaseException:
            await self._discard(name, _OTHER_VERSION)
            lock.release()
            raise
        self._staged.add(name)

    def commit(self, name: str) -> None:
        """Let the staged versions of a model answer new requests; versions that the repository has not are unloaded."""
        for model in self.list_versions(name):
            if model.is_removed:
                model.retire()
            else:
                model.commit()
        # It takes over changed names too.
        self.remove([model for model in self.list_versions(name) if model.is_removed])
        self._end_stage(name)

    async def discard(self, name: str, reason: str) -> None:
        """Unload the staged versions of a model, if there are any.

        Args:
            reason: why the model is not loaded.
        """
        if name in self._staged:
            await self._discard(name, reason)
            self._end_stage(name)

    async def unload_locally(self, name: str) -> None:
        """Unload all versions of a model, in this worker.

        Args:
            name: the first of the model's names.

        Raises:
            ModelNotFoundError: there is no model of that name.
        """
        self.find(name)
        async with self._lock(name):
            # What a model.yaml says is no matter for an unload.
            with contextlib.suppress(ArgumentsError):
                await self.refresh(name)
            for model in self.list_versions(name):
                await model.unload()
            self.remove([model for model in self.list_versions(name) if model.is_removed])

    async def refresh(self, name: str | None = None) -> None:
        """Read what the repository declares now, under a name or under all names.

        Raises:
            ArgumentsError: a declaration is wrong; among all, it is warned of.
        """
        if self._find_declarations is None:
            return
        found = []
        for declaration in await asyncio.to_thread(self._find_declarations, name):
            try:
                self.check_names(declaration, is_new=False)
            except ArgumentsError as error:
                if name is not None:
                    raise
                logger.warning("%s", error)
                continue
            found.append(declaration)
        new = {(declaration.name, declaration.version): declaration for declaration in found}
        for model in self if name is None else self.list_versions(name):
            key = model.name, model.version
            if key in new:
                model.declared, model.is_removed = new.pop(key), False
            elif name is not None:
                # The list of all has no models whose model.yaml is wrong.
                model.is_removed = True
        for declaration in new.values():
            # The server does not become unready by models that nobody has loaded yet.
            self.add(ServedModel(replace(declaration, load=False), self._create, self._is_labelled))
        self.remove([model for model in self if model.is_removed and not model.is_held])

    def close(self) -> None:
        """Stop: waiting requests fail. Blocks until the current batch is done."""
        for model in self:
            model.close()

    async def _change(self, verb: str, name: str) -> None:
        if not self.versions(name):
            await self.refresh(name)
        name = self.find(name).name
        change = self.change_all or self._change_locally
        task = asyncio.create_task(change(verb, name))
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        # Its caller may be gone when it fails.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(task)

    async def _change_locally(self, verb: str, name: str) -> None:
        if verb == "load":
            await self.stage(name)
            self.commit(name)
        else:
            await self.unload_locally(name)

    async def _discard(self, name: str, reason: str) -> None:
        for model in self.list_versions(name):
            await model.discard(reason)

    def _end_stage(self, name: str) -> None:
        if name in self._staged:
            self._staged.remove(name)
            self._lock(name).release()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _declare(self, declaration: ModelDeclaration) -> None:
        self.check_names(declaration, is_new=True)
        self.add(ServedModel(declaration, self._create, self._is_labelled))


def find_ready_model(models: Models, name: str, version: str = "") -> Runner:
    """The runner of a model that is loaded; protocols call this before they read a request's body.

    The runner stays loaded until the request has been answered.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such model.
        ModelNotReadyError: it is not loaded.
    """
    return models.find(name, version).hold(name)


def reports_ready(models: Models, name: str, version: str = "") -> bool:
    """Whether a probe of a model is told that it is ready: while the server drains, none is, and they still answer.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such model.
    """
    return models.find(name, version).ready and not models.draining


def find_probed_model(models: Models, name: str, version: str = "") -> Runner:
    """As `find_ready_model`, for a probe: while the server drains, its models are not ready, and answer nevertheless.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such model.
        ModelNotReadyError: it is not loaded, or the server ends.
    """
    runner = find_ready_model(models, name, version)
    if models.draining:
        raise ModelNotReadyError.of_shutdown()
    return runner
