"""Values of arguments by name, each with its origin: collected from a source, merged, and validated."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from runners.core.argument_groups import LaunchArguments
from runners.core.argument_names import WITHOUT_EFFECT, is_known, normalize_name, suggest_name
from runners.core.arguments import ARGUMENT_NAMES, Arguments
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError

logger = logging.getLogger(__name__)

# Messages never contain the values of these.
SECRETS = frozenset({"api_key", "admin_api_key"})
# Values of vLLM's `max_model_len` for the longest context that fits into memory.
_FITTING_LENGTHS = frozenset({"auto", "-1"})
_BOOLEANS = "it must be true, yes, on, t, y or 1, or false, no, off, f, n or 0"
_Validated = TypeVar("_Validated", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from.

    Attributes:
        name: "the command line", the name of a variable, "the Bento", or a file and line, such as "models.yaml:12".
        subject: what the line of a file is about, such as " of model 'ner'"; None if the origin is not a file.
    """

    name: str
    subject: str | None = None

    def describe_argument(self, argument: str) -> str:
        if self.subject is None:
            return f"argument {argument} (from {self.name})"
        return f"{self.name}: argument {argument}{self.subject}"

    def describe_unknown(self, argument: str) -> str:
        if self.subject is None:
            return f"unknown argument {argument!r} in {self.name}"
        return f"{self.name}: unknown argument {argument!r}{self.subject}"


@dataclass(frozen=True, slots=True)
class GivenValue:
    """
    Attributes:
        written: the value with `${VARIABLE}` as in its file; None if it has no variables.
    """

    value: object
    origin: Origin
    written: object = None

    def show(self, part: object = None) -> object:
        """The value, or a part of it, for messages: not what its variables contain, which may be secret."""
        if self.written is not None:
            return self.written
        return self.value if part is None else part


GivenValues: TypeAlias = Mapping[str, GivenValue]


def collect_values(source: Mapping[str, object], origin: Origin) -> dict[str, GivenValue]:
    """The values of a source by normalized name.

    Raises:
        ArgumentsError: a name is not that of any argument.
    """
    values: dict[str, GivenValue] = {}
    for name, value in source.items():
        add_value(values, name, GivenValue(value, origin))
    return values


def add_value(values: dict[str, GivenValue], name: str, given: GivenValue) -> None:
    """Add a value, unless it is empty or without effect, which is warned of.

    Raises:
        ArgumentsError: there is no argument of this name.
    """
    name = normalize_name(name)
    if given.value is None or given.value == "":
        return
    if name in WITHOUT_EFFECT:
        warn_without_effect(name, given.origin, WITHOUT_EFFECT[name])
    elif name in LaunchArguments.model_fields:
        warn_without_effect(name, given.origin, "it is for the command line of launch.py")
    else:
        check_known(name, given.origin)
        values[name] = given


def check_known(name: str, origin: Origin, others: Collection[str] = ()) -> None:
    """
    Args:
        name: a normalized name.
        others: names that are known here beside those of arguments, which the message may suggest.

    Raises:
        ArgumentsError: there is no argument of this name.
    """
    if not is_known(name):
        raise ArgumentsError(f"{origin.describe_unknown(name)}{suggest_name(name, others)}")


def warn_without_effect(name: str, origin: Origin, reason: str) -> None:
    logger.warning("%s in %s has no effect: %s", name, origin.name, reason)


def merge_values(*sources: GivenValues) -> dict[str, GivenValue]:
    """The values of all sources; those of a later one replace those of earlier ones, and come last."""
    merged: dict[str, GivenValue] = {}
    for source in sources:
        for name, given in source.items():
            # vLLM's parser takes the last of `enable_x` and `no_enable_x`.
            merged.pop(name, None)
            merged[name] = given
    return merged


def validate_arguments(values: GivenValues, place: str = "") -> Arguments:
    """
    Args:
        place: the start of messages about several arguments.

    Raises:
        ArgumentsError: a value is wrong.
    """
    own: dict[str, GivenValue] = {}
    engine: dict[str, EngineArgument] = {}
    for name, given in values.items():
        if name == "max_length" and str(given.value) in _FITTING_LENGTHS:
            engine["max_model_len"] = EngineArgument(str(given.value), given.origin.name)
        elif name in ARGUMENT_NAMES:
            own[name] = given
        else:
            # vLLM's parser reads text; argument files have typed values.
            text = given.value if isinstance(given.value, str) else json.dumps(given.value)
            engine[name] = EngineArgument(text, given.origin.name)
    return validate_values(Arguments, own, place, engine=engine)


def validate_values(model: type[_Validated], values: GivenValues, place: str = "", **others: object) -> _Validated:
    """
    Args:
        place: the start of messages about several values.
        others: values without an origin.

    Raises:
        ArgumentsError: a value is wrong.
    """
    try:
        return model.model_validate({**{name: given.value for name, given in values.items()}, **others})
    except ValidationError as error:
        raise ArgumentsError("; ".join(_describe(problem, values, place) for problem in error.errors())) from error


def _describe(problem: Mapping[str, object], values: GivenValues, place: str) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return f"{place}{message}"
    name = str(location[0])
    given = values[name]
    argument = given.origin.describe_argument(name)
    if problem["type"] == "bool_parsing":
        message = _BOOLEANS
    if name in SECRETS:
        return f"{argument} is wrong: {message}"
    return f"{argument} is {given.show(problem['input'])!r}: {message}"
