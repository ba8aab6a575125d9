"""The models of a server by name and version."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from runners.core.declarations import ModelDeclaration
from runners.core.errors import ArgumentsError, ModelNotFoundError, VersionNotFoundError
from runners.core.served_model import ServedModel

_NUMBER = re.compile(r"(\d+)")


class ModelIndex:
    """Finds models; used by one event loop, but read by any thread."""

    def __init__(self) -> None:
        # In the order of their declaration.
        self._all: tuple[ServedModel, ...] = ()
        # By each of its names, the versions of a model in ascending order.
        self._versions: dict[str, list[ServedModel]] = {}

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
        """The versions of a model, in ascending order; none if there is no such model."""
        return [model.version for model in self.list_versions(name)]

    def list_versions(self, name: str) -> Sequence[ServedModel]:
        """The versions of a model, in ascending order; none if there is no such model."""
        return tuple(self._versions.get(name, ()))

    def check_names(self, declaration: ModelDeclaration, is_new: bool) -> None:
        """
        Args:
            is_new: whether the index must not have the declared model itself.

        Raises:
            ArgumentsError: another model has a name and the version of the declared one.
        """
        for name in declaration.arguments.names:
            for model in self._versions.get(name, ()):
                if model.version == declaration.version and (is_new or model.name != declaration.name):
                    raise ArgumentsError(
                        f"{declaration.origin}: there are two models {name} of version {model.version}, "
                        f"also in {model.declaration.origin}"
                    )

    def add(self, model: ServedModel) -> None:
        """Add a model, whose names must be free."""
        self._all = (*self._all, model)
        self._index()

    def remove(self, models: Sequence[ServedModel]) -> None:
        """Remove some models, and take over the names of the others, which may have changed."""
        self._all = tuple(model for model in self._all if model not in models)
        self._index()

    def _index(self) -> None:
        versions: dict[str, list[ServedModel]] = {}
        for model in self._all:
            for name in model.names:
                versions.setdefault(name, []).append(model)
        for each in versions.values():
            each.sort(key=lambda model: version_key(model.version))
        self._versions = versions


def _choose_version(versions: Sequence[ServedModel]) -> ServedModel:
    """The highest version that is ready, else the highest."""
    return next((model for model in reversed(versions) if model.ready), versions[-1])


def version_key(version: str) -> list[tuple[bool, int, str]]:
    """The order of versions: by their numbers and by the texts between them, so that 10 is higher than 9."""
    parts = _NUMBER.split(version)
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
