"""Reads a model repository: a folder with a sub-folder for each model."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runners.core.argument_values import GivenValue, GivenValues, Origin, validate_arguments
from runners.core.arguments import SERVER_NAMES
from runners.core.declarations import Configuration, FindDeclarations, ModelDeclaration
from runners.core.errors import ArgumentsError
from runners.core.file_values import read_file
from runners.core.model_entries import Entry, declare_model, read_entry

logger = logging.getLogger(__name__)

MODEL_FILE = "model.yaml"
_CONFIG = "config.json"
# Triton ignores sub-folders of a model whose names begin with 0.
_VERSION_FOLDER = re.compile(r"[1-9][0-9]{0,17}")


def read_repository(
    folder: Path, origin: Origin, defaults: GivenValues, environment: Mapping[str, str], skips_wrong: bool = False
) -> Configuration:
    """The models in the sub-folders of a folder; a sub-folder without a model is warned of.

    Args:
        origin: the source of `model_repository`, for messages.
        defaults: the values of the server and of all models.
        environment: the variables that a model.yaml may name.
        skips_wrong: whether a model whose model.yaml is wrong is warned of, instead of an error.

    Raises:
        ArgumentsError: the folder cannot be read, or a model.yaml is wrong.
    """
    declare = _declare_if_right if skips_wrong else _declare
    server = validate_arguments(defaults)
    if not folder.is_dir():
        argument = origin.describe_argument("model_repository")
        raise ArgumentsError(f"{argument} is {str(folder)!r}: there is no such folder")
    # Keys of the API are for the server alone, and are not kept in plain text.
    kept = {name: given for name, given in defaults.items() if name not in SERVER_NAMES}
    configuration = Configuration(server, (), folder.absolute(), kept, environment)
    models: list[ModelDeclaration] = []
    for sub_folder in _list_folders(configuration):
        if _has_model(sub_folder):
            models += declare(sub_folder, configuration)
        else:
            logger.warning(
                "%s is skipped: it has no %s, no %s and no versions, such as 1/%s",
                sub_folder, _CONFIG, MODEL_FILE, _CONFIG,
            )  # fmt: skip
    return replace(configuration, models=tuple(models))


def find_in_repository(configuration: Configuration, name: str) -> list[ModelDeclaration]:
    """The versions of a model that the repository has now, by number; none if there is no such model.

    Raises:
        ArgumentsError: its model.yaml is wrong.
    """
    # The names of sub-folders are compared, so that no name leads out of the repository.
    for folder in _list_folders(configuration):
        if folder.name == name and _has_model(folder):
            return _declare(folder, configuration)
    return []


def find_declarations(configuration: Configuration) -> FindDeclarations | None:
    """A function that finds the models which the repository has now, by name or all; None without a repository.

    Among all, a model whose model.yaml is wrong is warned of. Any client may ask for all, so that a folder is read, and
    warned of, only when its files have changed.
    """
    if configuration.repository is None:
        return None
    last: dict[Path, _ReadFolder] = {}

    def find(name: str | None) -> list[ModelDeclaration]:
        nonlocal last
        if name is not None:
            return find_in_repository(configuration, name)
        found: dict[Path, _ReadFolder] = {}
        for folder in _list_folders(configuration):
            files = _describe_files(folder)
            known = last.get(folder)
            found[folder] = (
                known if known is not None and known[0] == files else (files, _declare_if_right(folder, configuration))
            )
        last = found
        return [model for _, models in found.values() for model in models]

    return find


# The files of a folder when it was read, and the models that it declared.
_ReadFolder = tuple[object, list[ModelDeclaration]]


def _declare_if_right(folder: Path, configuration: Configuration) -> list[ModelDeclaration]:
    """The models of a folder; none, with a warning, if its model.yaml is wrong."""
    try:
        return _declare(folder, configuration) if _has_model(folder) else []
    except ArgumentsError as error:
        logger.warning("%s", error)
        return []


def _declare(folder: Path, configuration: Configuration) -> list[ModelDeclaration]:
    return [
        declare_model(entry, configuration.defaults, configuration.arguments)
        for entry in _read_entries(folder, configuration.environment)
    ]


def _describe_files(folder: Path) -> object:
    """What determines the models of a folder, without reading files."""
    try:
        found = (folder / MODEL_FILE).stat()
        model_file = (found.st_mtime_ns, found.st_size, found.st_ino)
    except OSError:
        model_file = None
    return model_file, (folder / _CONFIG).is_file(), _list_versions(folder)


def _list_folders(configuration: Configuration) -> list[Path]:
    if configuration.repository is None:
        return []
    try:
        paths = sorted(configuration.repository.iterdir())
    except OSError as error:
        raise ArgumentsError(
            f"the model repository {configuration.repository} cannot be read: {error.strerror}"
        ) from error
    return [path for path in paths if not path.name.startswith(".") and path.name.isprintable() and path.is_dir()]


def _has_model(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() or (folder / MODEL_FILE).is_file() or bool(_list_versions(folder))


def _list_versions(folder: Path) -> list[Path]:
    """The sub-folders of a model that are its versions, as in Triton's repositories."""
    versions = [path.parent for path in folder.glob(f"*/{_CONFIG}") if _VERSION_FOLDER.fullmatch(path.parent.name)]
    return sorted(versions, key=lambda path: int(path.name))


def _read_entries(folder: Path, environment: Mapping[str, str]) -> list[Entry]:
    """
    Raises:
        ArgumentsError: the model.yaml is wrong.
    """
    model = f"model {folder.name!r}"
    path = folder / MODEL_FILE
    if path.is_file():
        entry = read_entry(read_file(path, str(path)), (), model, folder, environment)
    else:
        entry = Entry({}, None, True, Origin(str(folder), f" of {model}"))
    named = entry.values.get("model_name")
    if named is not None and str(named.value) != folder.name:
        raise ArgumentsError(
            f"{named.origin.describe_argument('name')} is {named.show()!r}: a model in a repository has the name of "
            "its folder"
        )
    values = {"model_name": GivenValue(folder.name, entry.origin), **entry.values}
    if "model_id" in values or "model_dir" in values:
        return [replace(entry, values=values)]
    versions = [] if (folder / _CONFIG).is_file() else _list_versions(folder)
    if not versions:
        return [replace(entry, values={**values, "model_dir": GivenValue(str(folder), entry.origin)})]
    if entry.version is not None:
        raise ArgumentsError(
            f"{entry.origin.name}: {model} has a version, but its folders {', '.join(each.name for each in versions)} "
            "are its versions: leave the version out"
        )
    return [
        replace(entry, values={**values, "model_dir": GivenValue(str(each), entry.origin)}, version=each.name)
        for each in versions
    ]
