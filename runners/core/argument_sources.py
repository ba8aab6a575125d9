"""Reads the arguments from all their sources: the command line, the environment and the Bento."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping, MutableMapping
from typing import TypeVar

from pydantic import ValidationError

from runners.core.argument_names import WITHOUT_EFFECT, check_name, is_known, normalize_name
from runners.core.arguments import ARGUMENT_NAMES, ArgumentGroup, Arguments, LaunchArguments
from runners.core.command_line import parse_command_line
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "RUNTIME_"
ENVIRONMENT_COMMAND_LINE = "RUNTIME_ARGS"
# launch.py passes its command line in this variable as JSON, because `bentoml serve` of a built Bento takes no
# arguments of the service. It has the highest precedence.
LAUNCH_VARIABLE = "RUNTIME_COMMAND_LINE"
_COMMAND_LINE = "the command line"
# vLLM's variable for `api_key`. vLLM would protect only its own routes with it.
_VLLM_KEY = "VLLM_API_KEY"
# Values of vLLM's `max_model_len` for the longest context that fits into memory.
_FITTING_LENGTHS = frozenset({"auto", "-1"})
# Messages never contain the values of these.
_SECRETS = frozenset({"api_key", "admin_api_key"})
_BOOLEANS = "it must be true, yes, on, t, y or 1, or false, no, off, f, n or 0"
_Group = TypeVar("_Group", bound=ArgumentGroup)


class _Merger:
    """Values by name, where a source that is added later replaces the values of earlier ones."""

    def __init__(self) -> None:
        self._values: dict[str, object] = {}
        self._engine: dict[str, EngineArgument] = {}
        self._origins: dict[str, str] = {}

    def add(self, source: Mapping[str, object], origin: str) -> None:
        """
        Args:
            origin: the name of the source, for messages.

        Raises:
            ArgumentsError: a name is not that of any argument.
        """
        for name, value in source.items():
            if value is not None and value != "":
                self._add_value(normalize_name(name), value, origin)

    def add_variable(self, variable: str, value: str) -> None:
        """Add `RUNTIME_<ARGUMENT>`; an unknown name is only a warning, because Kubernetes sets variables of that form
        for a Service called "runtime"."""
        name = normalize_name(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
        if value == "":
            return
        if is_known(name):
            self._add_value(name, value, variable)
        else:
            logger.warning("%s is ignored: there is no argument %s", variable, name)

    def _add_value(self, name: str, value: object, origin: str) -> None:
        if name == "max_length" and str(value) in _FITTING_LENGTHS:
            self._engine["max_model_len"] = EngineArgument(str(value), origin)
        elif name in WITHOUT_EFFECT:
            logger.warning("%s in %s has no effect: %s", name, origin, WITHOUT_EFFECT[name])
        elif name in LaunchArguments.model_fields:
            logger.warning("%s in %s has no effect: it is for the command line of launch.py", name, origin)
        elif name in ARGUMENT_NAMES:
            self._values[name] = value
            self._origins[name] = origin
        else:
            check_name(name, origin)
            # vLLM's parser reads text; argument files have typed values.
            self._engine[name] = EngineArgument(value if isinstance(value, str) else json.dumps(value), origin)

    def validate(self) -> Arguments:
        """
        Raises:
            ArgumentsError: a value is wrong.
        """
        return _validate(Arguments, {**self._values, "engine": self._engine}, self._origins)


def read_arguments(
    command_line: Mapping[str, object], environment: Mapping[str, str], bento_arguments: Mapping[str, object]
) -> Arguments:
    """Merge the sources; precedence: command line > environment > arguments in the Bento > defaults.

    In the environment `RUNTIME_<ARGUMENT>` wins over the same argument in `RUNTIME_ARGS`. Empty variables count as
    unset. vLLM's arguments are in `engine`.

    Args:
        command_line: BentoML's `--arg name=value`.
        bento_arguments: the arguments that the Bento was built with.

    Raises:
        ArgumentsError: one line with the name of the argument, its source and the allowed values.
    """
    merger = _Merger()
    merger.add({"api_key": environment.get(_VLLM_KEY)}, _VLLM_KEY)
    merger.add(bento_arguments, "the Bento")
    try:
        words = shlex.split(environment.get(ENVIRONMENT_COMMAND_LINE, ""))
    except ValueError as error:
        raise ArgumentsError(f"{ENVIRONMENT_COMMAND_LINE} is not a command line: {error}") from error
    merger.add(parse_command_line(words, ENVIRONMENT_COMMAND_LINE), ENVIRONMENT_COMMAND_LINE)
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in (ENVIRONMENT_COMMAND_LINE, LAUNCH_VARIABLE):
            merger.add_variable(variable, value)
    try:
        launch_arguments = json.loads(environment.get(LAUNCH_VARIABLE, "{}"))
    except ValueError:
        raise ArgumentsError(f"{LAUNCH_VARIABLE} is for launch.py alone: set {ENVIRONMENT_COMMAND_LINE}") from None
    merger.add({**command_line, **launch_arguments}, _COMMAND_LINE)
    return merger.validate()


def read_launch_arguments(values: Mapping[str, str]) -> LaunchArguments:
    """
    Raises:
        ArgumentsError: one line with the name of the argument and the allowed values.
    """
    return _validate(LaunchArguments, values, {})


def forget_keys(environment: MutableMapping[str, str]) -> None:
    """Remove the variables that may hold API keys in plain text from an environment that has been read."""
    secrets = [f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in _SECRETS]
    for variable in (ENVIRONMENT_COMMAND_LINE, LAUNCH_VARIABLE, _VLLM_KEY, *secrets):
        environment.pop(variable, None)


def _validate(group: type[_Group], values: Mapping[str, object], origins: Mapping[str, str]) -> _Group:
    try:
        return group.model_validate(values)
    except ValidationError as error:
        raise ArgumentsError("; ".join(_describe(problem, origins) for problem in error.errors())) from error


def _describe(problem: Mapping[str, object], origins: Mapping[str, str]) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    name = str(location[0])
    origin = origins.get(name, _COMMAND_LINE)
    if problem["type"] == "bool_parsing":
        message = _BOOLEANS
    if name in _SECRETS:
        return f"argument {name} (from {origin}) is wrong: {message}"
    return f"argument {name} (from {origin}) is {problem['input']!r}: {message}"
