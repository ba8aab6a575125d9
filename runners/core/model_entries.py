"""One model of a models file, or the model.yaml of a folder in a model repository."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from runners.core.argument_groups import LaunchArguments
from runners.core.argument_names import normalize_name
from runners.core.argument_values import (
    GivenValue,
    GivenValues,
    Origin,
    add_value,
    check_known,
    merge_values,
    validate_arguments,
    validate_values,
)
from runners.core.arguments import SERVER_NAMES, Arguments
from runners.core.declarations import FIRST_VERSION, ModelDeclaration, copy_server_arguments
from runners.core.errors import ArgumentsError
from runners.core.file_formats import KeyPath
from runners.core.file_values import FileValues, give_value

_VERSION = re.compile(r"[A-Za-z0-9._-]{1,64}")


def _check_version(value: str) -> str:
    if not _VERSION.fullmatch(value):
        raise ValueError("it must have only letters, digits, '.', '_' and '-', 64 at most")
    return value


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, coerce_numbers_to_str=True)

    version: Annotated[str, AfterValidator(_check_version)] | None = None
    load: bool = True


@dataclass(frozen=True, slots=True)
class Entry:
    """
    Attributes:
        values: the values of the model's arguments.
        version: None if the entry has none.
        load: see ModelDeclaration.
        origin: the line of the entry, or its folder.
    """

    values: GivenValues
    version: str | None
    load: bool
    origin: Origin


def read_entry(
    file: FileValues,
    path: KeyPath,
    model: str,
    folder: Path | None,
    environment: Mapping[str, str],
) -> Entry:
    """
    Args:
        path: where the mapping of the entry is in the file.
        model: what messages call the model, such as "model 'ner'".
        folder: the folder that relative folders start from; None if they are errors.

    Raises:
        ArgumentsError: a name is unknown or for the whole server, or a value is wrong.
    """
    subject = f" of {model}"
    values: dict[str, GivenValue] = {}
    options: dict[str, GivenValue] = {}
    for key, written in _find_mapping(file, path).items():
        origin = file.find_origin((*path, key), subject)
        name = "model_name" if key == "name" else normalize_name(key)
        target = options if name in _Options.model_fields else values
        if target is values:
            check_known(name, origin, others=("name", *_Options.model_fields))
            _refuse_server_argument(name, key.strip(), origin)
        if name in target:
            raise ArgumentsError(f"{origin.describe_argument(name)} is given twice, also in {target[name].origin.name}")
        value = give_value(written, environment, origin, key.strip())
        if target is values:
            add_value(values, name, value)
        elif value.value not in (None, ""):
            options[name] = value
    for name in ("model_id", "model_dir"):
        if name in values:
            values[name] = _locate(name, values[name], folder)
    checked = validate_values(_Options, options)
    return Entry(values, checked.version, checked.load, file.find_origin(path, subject))


def declare_model(entry: Entry, defaults: GivenValues, server: Arguments) -> ModelDeclaration:
    """
    Args:
        defaults: the values that the entry's replace.
        server: the arguments of the server.

    Raises:
        ArgumentsError: values are wrong.
    """
    place = f"{entry.origin.name}: {(entry.origin.subject or '').removeprefix(' of ')}: "
    arguments = validate_arguments(merge_values(defaults, entry.values), place)
    version = entry.version or FIRST_VERSION
    return ModelDeclaration(copy_server_arguments(server, arguments), version, entry.load, entry.origin.name)


def check_unique(models: Iterable[ModelDeclaration]) -> None:
    """
    Raises:
        ArgumentsError: two models share a name and the version.
    """
    places: dict[tuple[str, str], str] = {}
    for model in models:
        for name in model.arguments.names:
            key = (name, model.version)
            if key in places:
                raise ArgumentsError(
                    f"{model.origin}: version {model.version!r} of model {name!r} is declared twice, also in "
                    f"{places[key]}"
                )
            places[key] = model.origin


def _find_mapping(file: FileValues, path: KeyPath) -> Mapping[str, object]:
    mapping: Any = file.values
    for key in path:
        mapping = mapping[key]
    assert isinstance(mapping, dict)
    return mapping


def _refuse_server_argument(name: str, key: str, origin: Origin) -> None:
    if name in SERVER_NAMES:
        where = "set it at the top of the file, or for a model repository on the command line"
    elif name in LaunchArguments.model_fields:
        where = "set it on the command line of launch.py"
    else:
        return
    raise ArgumentsError(f"{origin.describe_argument(key)} is for the whole server: {where}")


def _locate(name: str, given: GivenValue, folder: Path | None) -> GivenValue:
    """The value with a path from the root in place of a relative folder; a hub id and a URI stay as they are."""
    if isinstance(given.value, (bool, list, dict)):
        # The model's arguments refuse it.
        return given
    value = str(given.value)
    if "://" in value or Path(value).is_absolute():
        return given
    if folder is None:
        if name == "model_id":
            return given
        raise ArgumentsError(
            f"{given.origin.describe_argument(name)} is {given.show()!r}: in a file at a URI it must be a URI or start "
            "with /"
        )
    placed = (folder / value).absolute()
    if name == "model_id" and not placed.is_dir():
        return given
    return replace(given, value=str(placed))
