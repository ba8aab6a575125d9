"""The values in a YAML, JSON or TOML file, with their lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runners.core.argument_values import GivenValue, Origin
from runners.core.errors import ArgumentsError
from runners.core.file_formats import MAX_DEPTH, PARSERS, TOO_DEEP, FileSyntaxError, KeyPath

MAX_BYTES = 2**20
_VARIABLE = re.compile(r"\$\{(?P<name>[^{}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class FileValues:
    """
    Attributes:
        label: what messages call the file.
        values: the mapping at the top of the file; its values are text, numbers, booleans, None, lists and mappings.
        lines: the line of each value that has one of its own.
    """

    label: str
    values: Mapping[str, object]
    lines: Mapping[KeyPath, int] = field(repr=False)

    def find_origin(self, path: KeyPath, subject: str = "") -> Origin:
        """The line of a value, or of the nearest one around it."""
        while path not in self.lines and path:
            path = path[:-1]
        return Origin(f"{self.label}:{self.lines.get(path, 1)}", subject)


def read_file(path: Path, label: str) -> FileValues:
    """
    Args:
        label: what messages call the file.

    Raises:
        ArgumentsError: the file cannot be read or parsed, or is too large.
    """
    parse = PARSERS.get(path.suffix.lower())
    if parse is None:
        raise ArgumentsError(f"{label} has an unknown suffix: it must be .yaml (or .yml), .json or .toml")
    text = _read_text(path, label)
    try:
        values, lines = parse(text)
    except FileSyntaxError as error:
        raise ArgumentsError(f"{label}:{error.line}: {error.problem}") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ArgumentsError(f"{label}:1: the top of the file must be a mapping of names to values")
    return FileValues(label, values, lines)


def _read_text(path: Path, label: str) -> str:
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ArgumentsError(f"{label} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise ArgumentsError(f"{label} is larger than 1 MiB")
    try:
        # Editors on Windows may write a byte order mark.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ArgumentsError(f"{label}:{line}: the file is not UTF-8") from error


def give_value(written: object, environment: Mapping[str, str], origin: Origin, name: str) -> GivenValue:
    """A value of the file with its variables replaced; the arguments and errors are those of `resolve_variables`."""
    value = resolve_variables(written, environment, origin, name)
    return GivenValue(value, origin, None if value == written else written)


def resolve_variables(
    value: object, environment: Mapping[str, str], origin: Origin, name: str, depth: int = 0
) -> object:
    """The value with variables of the environment in place of `${VARIABLE}`, also in its lists and mappings.

    Args:
        name: the argument that has the value, for messages.
        depth: the lists and mappings around the value.

    Raises:
        ArgumentsError: a variable is not set, or a value is of a type that only one format has, or too deep.
    """
    if depth > MAX_DEPTH:
        raise ArgumentsError(f"{origin.describe_argument(name)} has {TOO_DEEP}")
    if isinstance(value, str):
        return _VARIABLE.sub(lambda match: _find_variable(match["name"], environment, origin, name), value)
    if isinstance(value, list):
        return [resolve_variables(item, environment, origin, name, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: resolve_variables(item, environment, origin, name, depth + 1) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float)):
        return value
    raise ArgumentsError(f"{origin.describe_argument(name)} is a {type(value).__name__}: write it in quotes")


def _find_variable(variable: str, environment: Mapping[str, str], origin: Origin, name: str) -> str:
    if not _NAME.fullmatch(variable):
        raise ArgumentsError(f"{origin.describe_argument(name)} has ${{{variable}}}: only ${{VARIABLE}} is replaced")
    if variable not in environment:
        raise ArgumentsError(
            f"{origin.describe_argument(name)} has ${{{variable}}}, but the environment has no {variable}"
        )
    return environment[variable]
