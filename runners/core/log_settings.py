"""How the log is written, known before all arguments are read: an error of another argument has its form too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from runners.core.argument_groups import LogArguments
from runners.core.argument_sources import ENVIRONMENT_COMMAND_LINE, ENVIRONMENT_PREFIX, LAUNCH_VARIABLE

_NAMES = ("log_format", "log_level")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """
    Attributes:
        level: debug, info, warning or error; None for that of BentoML.
    """

    is_json: bool = False
    level: str | None = None

    @classmethod
    def of(cls, arguments: LogArguments) -> LogSettings:
        return cls(arguments.log_format == "json", arguments.log_level)


def peek_log_settings(
    environment: Mapping[str, str], words: Iterable[str] = (), bento_arguments: Mapping[str, object] | None = None
) -> LogSettings:
    """The settings as far as they can be told from sources that may be wrong elsewhere; wrong ones are left out.

    Args:
        words: the command line of launch.py.
        bento_arguments: those of BentoML.
    """
    found: dict[str, object] = {}
    for source in (
        bento_arguments or {},
        _find_options(environment.get(ENVIRONMENT_COMMAND_LINE, "")),
        {name: environment.get(f"{ENVIRONMENT_PREFIX}{name.upper()}") for name in _NAMES},
        _parse_object(environment.get(LAUNCH_VARIABLE, "")),
        _find_options(" ".join(words)),
    ):
        found |= {name: value for name in _NAMES if (value := source.get(name))}
    valid: dict[str, object] = {}
    for name, value in found.items():
        try:
            valid |= {name: getattr(LogArguments.model_validate({name: value}), name)}
        except ValueError:
            # Who reads all arguments says so.
            continue
    return LogSettings.of(LogArguments.model_validate(valid))


def _find_options(command_line: str) -> dict[str, str]:
    options = re.findall(r"--(log[_-](?:format|level))[= ]+['\"]?(\w+)", command_line)
    return {name.replace("-", "_"): value for name, value in options}


def _parse_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
