"""The models of this server by name and version; they are loaded, reloaded and unloaded while the server runs."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from runners.core.declarations import FindDeclarations, ModelDeclaration
from runners.core.errors import (
    ArgumentsError,
    ModelNotFoundError,
    ModelNotReadyError,
    RunnerError,
    VersionNotFoundError,
)
from runners.core.served_model import CreateRunner, ServedModel

if TYPE_CHECKING:
    from runners.core.runner import Runner

_NUMBER = re.compile(r"(\d+)")


class Models:
    """The models of this server; used by one event loop.

    Attributes:
        change_all: lets all workers "load" or "unload" the models of a name; None if this is the only worker.
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
        self.change_all: Callable[[str, str], Awaitable[None]] | None = None
        self._create = create
        self._find_declarations = find_declarations
        self._is_ready_when_any = is_ready_when_any
        # By each of its names, the versions of a model in ascending order.
        self._versions: dict[str, list[ServedModel]] = {}
        # All versions of all models.
        self._all: tuple[ServedModel, ...] = ()
        declared = tuple(declarations)
        self._is_labelled = len(declared) > 1 or find_declarations is not None
        for declaration in declared:
            self._add(declaration)
        self._loads_at_start = any(model.is_wanted for model in self)
        # Loads and unloads of a name happen one after another.
        self._locks: dict[str, asyncio.Lock] = {}

    def __iter__(self) -> Iterator[ServedModel]:
        """All versions of all models, in the order of their declaration."""
        return iter(self._all)

    def __len__(self) -> int:
        """The number of versions of all models."""
        return len(self._all)

    @property
    def names(self) -> list[str]:
        """All names, of which a model may have several."""
        return list(self._versions)

    @property
    def ready(self) -> bool:
        """Whether the models that are to be loaded are ready: all of them, or one if the operator says so.

        A server whose operator declares none to be loaded is ready; one whose models have all been unloaded is not.
        """
        wanted = [model.ready for model in self if model.is_wanted]
        if not wanted:
            return not self._loads_at_start
        return any(wanted) if self._is_ready_when_any else all(wanted)

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
        """Whether no model has died."""
        return not any(model.failed for model in self)

    def find(self, name: str, version: str = "") -> ServedModel:
        """The model of that name and version; without a version the highest that is ready, else the highest.

        Raises:
            ModelNotFoundError: there is no model of that name.
            VersionNotFoundError: the model has no such version.
        """
        versions = self._versions.get(name)
        if versions is None:
            raise ModelNotFoundError(name, self.names)
        if not version:
            return versions[-1] if len(versions) == 1 else _choose_version(versions)
        for model in versions:
            if model.version == version:
                return model
        raise VersionNotFoundError(name, version, [model.version for model in versions])

    def choose_versions(self) -> list[ServedModel]:
        """Of each model the version that answers requests without a version."""
        return list(dict.fromkeys(self.find(model.name) for model in self._all))

    def versions(self, name: str) -> list[str]:
        """The versions of a model, in ascending order."""
        return [model.version for model in self._versions[name]]

    async def load_first(self, model: ServedModel) -> None:
        """Load a model when this worker starts.

        Raises:
            RunnerError: the model cannot be loaded.
        """
        async with self._lock(model.name):
            await model.stage()
            model.commit()

    async def load(self, name: str) -> None:
        """Load all versions of a model, in all workers; one that is loaded is loaded again if its files have changed.

        Raises:
            ModelNotFoundError: there is no model of that name.
            RunnerError: the model cannot be loaded; the one that was loaded before goes on.
        """
        if self.change_all is not None:
            await self.change_all("load", name)
            return
        await self.stage(name)
        self.commit(name)

    async def unload(self, name: str) -> None:
        """Unload all versions of a model, in all workers, once their requests have ended.

        Raises:
            ModelNotFoundError: there is no model of that name.
        """
        if self.change_all is not None:
            await self.change_all("unload", name)
            return
        await self.unload_here(name)

    async def stage(self, name: str) -> None:
        """Load the versions of a model beside those that answer requests; `commit` or `discard` must follow.

        Raises:
            ModelNotFoundError: there is no model of that name.
            RunnerError: a version cannot be loaded; none is staged.
        """
        async with self._lock(name):
            await self.refresh(name)
            self.find(name)
            for model in self._versions[name]:
                try:
                    await model.stage()
                except RunnerError:
                    await self._discard(name)
                    raise

    def commit(self, name: str) -> None:
        """Let the staged versions of a model answer new requests."""
        for model in self._versions[name]:
            model.commit()

    async def discard(self, name: str) -> None:
        """Unload the staged versions of a model."""
        async with self._lock(name):
            await self._discard(name)

    async def unload_here(self, name: str) -> None:
        """Unload all versions of a model, in this worker.

        Raises:
            ModelNotFoundError: there is no model of that name.
        """
        self.find(name)
        async with self._lock(name):
            for model in self._versions[name]:
                await model.unload()

    async def refresh(self, name: str | None = None) -> None:
        """Read what the repository declares now, under a name or under all names.

        Raises:
            ArgumentsError: a declaration is wrong.
        """
        if self._find_declarations is None:
            return
        for declaration in await asyncio.to_thread(self._find_declarations, name):
            versions = self._versions.get(declaration.name, ())
            known = next((model for model in versions if model.version == declaration.version), None)
            if known is None:
                # The server does not become unready by models that nobody has loaded yet.
                self._add(replace(declaration, load=False))
            else:
                known.declaration = declaration

    def set_wanted(self, wanted: Mapping[str, bool]) -> None:
        """Load other models at the start than those that are declared so.

        Args:
            wanted: whether to load a model, by name; other models stay as they are declared.
        """
        for name, is_wanted in wanted.items():
            for model in self._versions.get(name, ()):
                model.set_wanted(is_wanted)

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

    def close(self) -> None:
        """Stop: waiting requests fail. Blocks until the current batch is done."""
        for model in self:
            model.close()

    async def _discard(self, name: str) -> None:
        for model in self._versions.get(name, ()):
            await model.discard()

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    def _add(self, declaration: ModelDeclaration) -> None:
        model = ServedModel(declaration, self._create, self._is_labelled)
        for name in declaration.arguments.names:
            versions = self._versions.setdefault(name, [])
            if any(each.version == model.version for each in versions):
                raise ArgumentsError(f"{declaration.origin}: there are two models {name} of version {model.version}")
            versions.append(model)
            versions.sort(key=lambda each: _version_key(each.version))
        self._all = tuple(dict.fromkeys(model for versions in self._versions.values() for model in versions))


def _choose_version(versions: Sequence[ServedModel]) -> ServedModel:
    """The highest version that is ready, else the highest."""
    return next((model for model in reversed(versions) if model.ready), versions[-1])


def _version_key(version: str) -> list[tuple[bool, int, str]]:
    """The order of versions: by their numbers and by the texts between them, so that 10 is higher than 9."""
    parts = _NUMBER.split(version)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]


def find_ready_model(models: Models, name: str, version: str = "") -> Runner:
    """The runner of a model that is loaded; protocols call this before they read a request's body.

    The runner stays loaded until the request has been answered.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such model.
        ModelNotReadyError: it is not loaded.
    """
    runner = models.find(name, version).hold()
    if runner is None:
        raise ModelNotReadyError.of_model(name)
    return runner
