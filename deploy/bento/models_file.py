"""A models file for a Bento: its models are in BentoML's model store, and it names them there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import bentoml
import yaml
from bentoml.exceptions import NotFound

from runners.core.argument_names import normalize_name
from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from runners.core.file_formats import WrittenFloat
from runners.core.file_values import FileValues, read_file, resolve_variables
from runners.core.models_file import read_models_file
from runners.core.redaction import redact
from runners.hosting.storage.uris import is_uri

NAME = "models.yaml"
# What says where a model is; `bentoml://name:version` replaces all of it.
_PLACE = ("model_id", "model_dir", "model_revision", "tokenizer_revision")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_IN_STORE = "bentoml://"


@dataclass(frozen=True, slots=True)
class BakedFile:
    """
    Attributes:
        text: the file as YAML.
        models: the tags of its models.
        variables: the variables of the environment that it names.
    """

    text: str
    models: tuple[bentoml.Tag, ...]
    variables: frozenset[str]


def bake_models_file(path: Path, store: Callable[[str, str | None], bentoml.Tag]) -> BakedFile:
    """Store the models of a models file, and write the file that names them in the store; its variables stay.

    Args:
        store: puts a folder, or a hub id with a revision, into the model store.

    Raises:
        ArgumentsError: the file is wrong, or a model is at a URI that cannot be stored.
        ValueError: there is no such model.
    """
    file = read_file(path, str(path))
    variables = frozenset(_find_variables(file.values))
    # The values of the variables belong to the server's environment; here the rest of the file is checked.
    environment = {**dict.fromkeys(variables, ""), **os.environ}
    declared = read_models_file(path, str(path), {}, {}, environment).models
    items = file.values["models"]
    assert isinstance(items, list)
    for index, item in enumerate(items):
        _check_place(file, index, item)
    tags = [_store_model(model.arguments, model.origin, store) for model in declared]
    models = [_name_in_store(item, model.name, tag) for item, model, tag in zip(items, declared, tags, strict=True)]
    values = {**_leave_out(file.values, (*_PLACE, "models")), "models": models}
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**20)
    return BakedFile(text, tuple(dict.fromkeys(tags)), frozenset(_find_variables(values)))


def _name_in_store(item: Mapping[str, object], name: str, tag: bentoml.Tag) -> dict[str, object]:
    """The item with the model's tag; it keeps its name, which the folder or hub id may have given."""
    is_named = any(item.get(key) not in (None, "") for key in ("name", "model_name"))
    kept = _leave_out(item, _PLACE if is_named else (*_PLACE, "name", "model_name"))
    return {**({} if is_named else {"name": name}), **kept, "model_dir": f"{_IN_STORE}{tag}"}


def _leave_out(values: Mapping[str, object], names: Collection[str]) -> dict[str, object]:
    return {key: value for key, value in values.items() if normalize_name(key) not in names}


def _find_variables(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield from _VARIABLE.findall(value)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _find_variables(each)
    elif isinstance(value, list):
        for each in value:
            yield from _find_variables(each)


def _check_place(file: FileValues, index: int, item: Mapping[str, object]) -> None:
    """
    Raises:
        ArgumentsError: a variable that says where a model is has no value.
    """
    for key, value in item.items():
        if normalize_name(key) in _PLACE:
            resolve_variables(value, os.environ, file.find_origin(("models", index, key)), key)


def _store_model(arguments: Arguments, origin: str, store: Callable[[str, str | None], bentoml.Tag]) -> bentoml.Tag:
    model, revision = arguments.model, arguments.model_revision
    place = f"{origin}: model {arguments.model_name!r}"
    if arguments.tokenizer_revision not in (None, revision):
        raise ArgumentsError(f"{place} has a tokenizer_revision, but in a Bento a model has one revision: leave it out")
    if not is_uri(model):
        try:
            return store(model, revision)
        except ValueError as error:
            raise ArgumentsError(f"{place}: {error}") from error
    if not model.startswith(_IN_STORE):
        raise ArgumentsError(
            f"{place} is at {redact(model)}, and a build reads folders, hub ids and {_IN_STORE}name:version: download "
            "it and name its folder"
        )
    try:
        return bentoml.models.get(model.removeprefix(_IN_STORE)).tag
    except (NotFound, ValueError) as error:
        raise ArgumentsError(f"{place} is at {model}, which is not in BentoML's model store") from error


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Quotes all text: what YAML 1.1 writes without quotes may be a number in version 1.2, which the server reads."""


_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
_Dumper.add_representer(
    WrittenFloat, lambda dumper, number: dumper.represent_scalar("tag:yaml.org,2002:float", number.text)
)
