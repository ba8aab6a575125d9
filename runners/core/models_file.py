"""Reads a models file: arguments of the server at its top, and a list of models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from runners.core.argument_names import normalize_name
from runners.core.argument_values import (
    GivenValue,
    GivenValues,
    add_value,
    check_known,
    merge_values,
    validate_arguments,
    warn_without_effect,
)
from runners.core.arguments import Arguments
from runners.core.declarations import Configuration, ModelDeclaration
from runners.core.errors import ArgumentsError
from runners.core.file_values import FileValues, give_value, read_file
from runners.core.model_entries import check_unique, declare_model, read_entry

_MODELS = "models"
# What the top of a file must not have, with the reason.
_NOT_AT_THE_TOP: Mapping[str, str] = {
    **dict.fromkeys(
        ("model_id", "model_dir", "name", "version", "load"), "it is for one model: set it in an item of models"
    ),
    "models_file": "a models file cannot name another",
    "model_repository": "a models file excludes a repository",
}


def read_models_file(
    path: Path, label: str, baked: GivenValues, given: GivenValues, environment: Mapping[str, str]
) -> Configuration:
    """
    Args:
        path: the file on this machine.
        label: what messages call the file; a relative folder in a file at a URI is an error.
        baked: the values that the Bento was built with, which the top of the file replaces.
        given: the values of the command line and the environment, which replace those at the top of the file; those of
            a model replace them.

    Raises:
        ArgumentsError: the file cannot be read, or a name or value is wrong; the message names the line.
    """
    file = read_file(path, path.name if "://" in label else label)
    folder = None if "://" in label else path.parent
    shared = merge_values(baked, _read_top(file, environment), given)
    server = validate_arguments(shared, f"{file.label}: ")
    models = [
        _declare(file, index, item, folder, shared, server, environment)
        for index, item in enumerate(_find_models(file))
    ]
    check_unique(models)
    return Configuration(server, tuple(models))


def _declare(
    file: FileValues,
    index: int,
    item: object,
    folder: Path | None,
    shared: GivenValues,
    server: Arguments,
    environment: Mapping[str, str],
) -> ModelDeclaration:
    path = (_MODELS, index)
    place = file.find_origin(path)
    if not isinstance(item, dict):
        raise ArgumentsError(f"{place.name}: item {index + 1} of `{_MODELS}` must be a mapping of arguments to values")
    written = {normalize_name("model_name" if key == "name" else key): value for key, value in item.items()}
    called = written.get("model_name") or _derive_name(written)
    is_named = isinstance(called, str) and "${" not in called
    model = f"model {called!r}" if is_named else f"model {index + 1}"
    entry = read_entry(file, path, model, folder, environment)
    if "model_id" not in entry.values and "model_dir" not in entry.values:
        raise ArgumentsError(f"{place.name}: {model} has neither model_id nor model_dir: set one of them")
    if "model_name" not in entry.values:
        name = _derive_name({key: given.value for key, given in entry.values.items()})
        if not name:
            raise ArgumentsError(f"{place.name}: {model} needs a name")
        entry = replace(entry, values={**entry.values, "model_name": GivenValue(name, entry.origin)})
    return declare_model(entry, shared, server)


def _derive_name(values: Mapping[str, object]) -> str | None:
    """The last part of a model's id, folder or URI: `bert-base-NER` for `dslim/bert-base-NER`; None without one."""
    source = values.get("model_id") or values.get("model_dir")
    if not isinstance(source, str):
        return None
    # The query of a URI may be a credential, and the URI of a hub's model may end in `:revision`.
    path = source.partition("?")[0].rpartition("://")[2].rstrip("/").rpartition("/")[2]
    return (path.partition(":")[0] if "://" in source else path) or None


def _find_models(file: FileValues) -> list[object]:
    if _MODELS not in file.values:
        raise ArgumentsError(f"{file.label}:1: the file has no list `{_MODELS}`")
    models = file.values[_MODELS]
    place = file.find_origin((_MODELS,)).name
    if not isinstance(models, list):
        raise ArgumentsError(f"{place}: `{_MODELS}` must be a list")
    if not models:
        raise ArgumentsError(f"{place}: `{_MODELS}` must have at least one model")
    return models


def _read_top(file: FileValues, environment: Mapping[str, str]) -> dict[str, GivenValue]:
    values: dict[str, GivenValue] = {}
    for key, value in file.values.items():
        if key == _MODELS:
            continue
        origin = file.find_origin((key,))
        name = normalize_name(key)
        if (reason := _NOT_AT_THE_TOP.get(name)) is not None:
            raise ArgumentsError(f"{origin.name}: {key.strip()} cannot be at the top of the file: {reason}")
        if name in values:
            raise ArgumentsError(f"{origin.name}: {name} is given twice, also in {values[name].origin.name}")
        check_known(name, origin, others=(_MODELS,))
        if name == "model_name":
            warn_without_effect(name, origin, "each model has its own name")
        else:
            add_value(values, name, give_value(value, environment, origin, key.strip()))
    return values
