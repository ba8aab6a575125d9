"""Reads the arguments from all their sources: the command line, the environment, a models file and the Bento."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from runners.core.argument_groups import LaunchArguments, PredictArguments
from runners.core.argument_names import is_known, normalize_name
from runners.core.argument_values import (
    SECRETS,
    GivenValue,
    GivenValues,
    Origin,
    add_value,
    collect_values,
    merge_values,
    validate_arguments,
    validate_values,
    warn_without_effect,
)
from runners.core.arguments import Arguments
from runners.core.cloud_variables import read_cloud_port, read_cloud_values
from runners.core.command_line import parse_command_line
from runners.core.declarations import Configuration, ModelDeclaration
from runners.core.errors import ArgumentsError
from runners.core.model_repository import read_repository
from runners.core.models_file import read_models_file

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "RUNTIME_"
ENVIRONMENT_COMMAND_LINE = "RUNTIME_ARGS"
# launch.py passes its command line in this variable as JSON, because `bentoml serve` of a built Bento takes no
# arguments of the service. It has the highest precedence.
LAUNCH_VARIABLE = "RUNTIME_COMMAND_LINE"
_COMMAND_LINE = Origin("the command line")
# vLLM's variable for `api_key`. vLLM would protect only its own routes with it.
_VLLM_KEY = "VLLM_API_KEY"
# What names several models, and what names one.
_SEVERAL = ("models_file", "model_repository")
_ONE = ("model_id", "model_dir")
# What belongs to the one model that a Bento was built with.
_OF_ONE = ("model_name", "model_revision", "tokenizer_revision", *_ONE)


@dataclass(frozen=True, slots=True)
class _Sources:
    """
    Attributes:
        baked: the arguments that the Bento was built with, and what a cloud says where it has none.
        given: those of the command line and the environment, merged.
    """

    baked: GivenValues
    given: GivenValues

    def merge(self) -> dict[str, GivenValue]:
        return merge_values(self.baked, self.given)


def read_arguments(
    command_line: Mapping[str, object], environment: Mapping[str, str], bento_arguments: Mapping[str, object]
) -> Arguments:
    """Merge the sources; precedence: command line > environment > arguments in the Bento > a cloud's > defaults.

    In the environment `RUNTIME_<ARGUMENT>` wins over the same argument in `RUNTIME_ARGS`. Empty variables count as
    unset. vLLM's arguments are in `engine`.

    Args:
        command_line: BentoML's `--arg name=value`.
        bento_arguments: the arguments that the Bento was built with.

    Raises:
        ArgumentsError: one line with the name of the argument, its source and the allowed values.
    """
    return validate_arguments(_read_sources(command_line, environment, bento_arguments).merge())


def read_configuration(
    command_line: Mapping[str, object],
    environment: Mapping[str, str],
    bento_arguments: Mapping[str, object],
    localize: Callable[[str], Path | None] = Path,
    skips_wrong: bool = False,
    settings: GivenValues = MappingProxyType({}),
) -> Configuration:
    """Read all sources, and the models file or the model repository that they name.

    Precedence for the server: as in `read_arguments`, with the top of the models file between the environment and the
    Bento; for a model, its entry comes before the command line.

    Args:
        command_line: as in `read_arguments`.
        bento_arguments: as in `read_arguments`.
        localize: returns the local path of a models file or model repository; None if it is not on this machine, as
            while a Bento is built. Then the configuration has no models.
        skips_wrong: whether a wrong model.yaml is warned of: other workers serve already.
        settings: the operator's settings of BentoML's, which come last, before the defaults.

    Raises:
        ArgumentsError: one line with the name of the argument, its source or the line of its file, and the allowed
            values.
    """
    sources = _read_sources(command_line, environment, bento_arguments)
    given, baked = sources.given, merge_values(settings, sources.baked)
    if any(name in given for name in (*_SEVERAL, *_ONE)):
        # Who names models serves them instead of those that the Bento was built with.
        baked = _leave_out(baked, _SEVERAL)
    several = {name: source for name, source in merge_values(baked, given).items() if name in _SEVERAL}
    if len(several) > 1:
        named = " and ".join(f"{name} (from {source.origin.name})" for name, source in several.items())
        raise ArgumentsError(f"{named} exclude each other: set one of them")
    for name, source in several.items():
        given = _refuse_one_model(given, name, source)
        baked = _leave_out(baked, _OF_ONE)
        if name == "model_repository" and "://" in str(source.value):
            raise ArgumentsError(f"{source.origin.describe_argument(name)} is a URI, but it must be a folder")
        path = localize(str(source.value))
        if path is None:
            return Configuration(validate_arguments(merge_values(baked, given)), ())
        if name == "models_file":
            return read_models_file(path, str(source.value), baked, given, environment)
        return read_repository(path, source.origin, merge_values(baked, given), environment, skips_wrong)
    arguments = validate_arguments(merge_values(baked, given))
    return Configuration(arguments, (ModelDeclaration(arguments),))


def _refuse_one_model(given: GivenValues, several: str, source: GivenValue) -> dict[str, GivenValue]:
    """The given values without those of one model, which have no effect or are an error beside several models.

    Args:
        several: the argument that names the models.
        source: its value.
    """
    for name in ("model_name", *_ONE):
        if name not in given:
            continue
        origin = given[name].origin
        # KServe's manifests pass --model_name, and the folder that models are mounted in.
        if name != "model_name" and Path(str(given[name].value)) != Path(str(source.value)):
            raise ArgumentsError(
                f"{name} (from {origin.name}) names one model, but {several} (from {source.origin.name}) several: "
                f"leave out {name} or {several}"
            )
        warn_without_effect(name, origin, f"{several} names the models")
    return _leave_out(given, ("model_name", *_ONE))


def _leave_out(values: GivenValues, names: tuple[str, ...]) -> dict[str, GivenValue]:
    return {name: given for name, given in values.items() if name not in names}


def _read_sources(
    command_line: Mapping[str, object], environment: Mapping[str, str], bento_arguments: Mapping[str, object]
) -> _Sources:
    key = collect_values({"api_key": environment.get(_VLLM_KEY)}, Origin(_VLLM_KEY))
    baked = collect_values(bento_arguments, Origin("the Bento"))
    try:
        words = shlex.split(environment.get(ENVIRONMENT_COMMAND_LINE, ""))
    except ValueError as error:
        raise ArgumentsError(f"{ENVIRONMENT_COMMAND_LINE} is not a command line: {error}") from error
    line_values = collect_values(parse_command_line(words, ENVIRONMENT_COMMAND_LINE), Origin(ENVIRONMENT_COMMAND_LINE))
    variables: dict[str, GivenValue] = {}
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in (ENVIRONMENT_COMMAND_LINE, LAUNCH_VARIABLE):
            _add_variable(variables, variable, value)
    try:
        launch_arguments = json.loads(environment.get(LAUNCH_VARIABLE, "{}"))
    except ValueError:
        raise ArgumentsError(f"{LAUNCH_VARIABLE} is for launch.py alone: set {ENVIRONMENT_COMMAND_LINE}") from None
    last = collect_values({**command_line, **launch_arguments}, _COMMAND_LINE)
    cloud = read_cloud_values(environment)
    return _Sources(merge_values(key, cloud, baked), merge_values(line_values, variables, last))


def _add_variable(values: dict[str, GivenValue], variable: str, value: str) -> None:
    """Add `RUNTIME_<ARGUMENT>`; an unknown name is only a warning, because Kubernetes sets variables of that form for
    a Service called "runtime"."""
    name = normalize_name(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
    if value == "":
        return
    if is_known(name):
        add_value(values, name, GivenValue(value, Origin(variable)))
    else:
        logger.warning("%s is ignored: there is no argument %s", variable, name)


def read_launch_arguments(values: Mapping[str, str], environment: Mapping[str, str]) -> LaunchArguments:
    """
    Args:
        values: those of the command line, which win over a cloud's variables.

    Raises:
        ArgumentsError: one line with the name of the argument and the allowed values.
    """
    given = {name: GivenValue(value, _COMMAND_LINE) for name, value in values.items()}
    return validate_values(LaunchArguments, merge_values(read_cloud_port(environment), given))


def read_predict_arguments(values: Mapping[str, str]) -> PredictArguments:
    """
    Args:
        values: those of the command line.

    Raises:
        ArgumentsError: one line with the name of the argument and the allowed values.
    """
    return validate_values(PredictArguments, {name: GivenValue(value, _COMMAND_LINE) for name, value in values.items()})


def forget_keys(environment: MutableMapping[str, str]) -> None:
    """Remove the variables that may hold API keys in plain text from an environment that has been read."""
    secrets = [f"{ENVIRONMENT_PREFIX}{name.upper()}" for name in SECRETS]
    for variable in (ENVIRONMENT_COMMAND_LINE, LAUNCH_VARIABLE, _VLLM_KEY, *secrets):
        environment.pop(variable, None)
