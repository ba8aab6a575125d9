"""Parses KServe's and vLLM's command line; values stay text."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from runners.core.argument_groups import ArgumentGroup, show_default
from runners.core.argument_names import ALIASES, VLLM_ONLY, WITHOUT_EFFECT, normalize_name
from runners.core.argument_values import Origin, check_known
from runners.core.arguments import GROUPS
from runners.core.errors import ArgumentsError
from runners.core.vllm_flags import SHORT

_FLAGS_WITHOUT_EFFECT = frozenset({"disable_log_requests"})
_SHORT_OPTION = re.compile(r"-(?P<name>[a-z]+(\.[\w.]+)?)(=(?P<value>.*))?$", re.DOTALL)
# vLLM's -O3, -O=3 and -O 3.
_OPTIMIZATION = re.compile(r"-O=?(?P<level>\d*)$")
_BOOLEANS = frozenset({"true", "yes", "on", "t", "y", "1", "false", "no", "off", "f", "n", "0"})
_LINK = re.compile(r"\[([^]]+)\]\([^)]+\)")


@dataclass(frozen=True, slots=True)
class SeparatedWords:
    """The words of a command that has texts beside its arguments.

    Attributes:
        command_values: the values of the command's arguments, by name; none is validated.
        texts: the words that belong to no argument.
        server_words: the arguments of the server.
    """

    command_values: dict[str, str]
    texts: list[str]
    server_words: list[str]


def create_parser(command_groups: Sequence[type[ArgumentGroup]] = ()) -> argparse.ArgumentParser:
    """The parser of this server's and KServe's names, in groups for `--help`; it accepts every value.

    Args:
        command_groups: the arguments of a command that is no server; they come first.
    """
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    command_names = {name for group in command_groups for name in group.model_fields}
    for group in (*command_groups, *GROUPS):
        options = parser.add_argument_group(group.title)
        for name, field in group.model_fields.items():
            if name in command_names and group not in command_groups:
                # It has another meaning for the command.
                continue
            default = show_default(field.default)
            described = f"{field.description}; default {default}" if default else f"{field.description}"
            _add_option(options, _list_names(name), _is_flag(field), described)
    ignored = parser.add_argument_group("KServe's, accepted without effect")
    for name, instead in WITHOUT_EFFECT.items():
        _add_option(ignored, [name], name in _FLAGS_WITHOUT_EFFECT, instead)
    vllm_names = [*(f"--{name}" for name in VLLM_ONLY), *(f"-{name}" for name in sorted(SHORT))]
    parser.add_argument_group("vLLM's (docs.vllm.ai has what they do; flags also as --no_...)", " ".join(vllm_names))
    return parser


def _list_names(name: str) -> list[str]:
    return [name, *(alias for alias, target in ALIASES.items() if target == name)]


def _is_flag(field: FieldInfo) -> bool:
    return field.annotation in (bool, bool | None)


def _add_option(options: Any, names: Sequence[str], is_flag: bool, description: str) -> None:
    text = _LINK.sub(r"\1", description).replace("`", "").replace("%", "%%")
    words = [f"--{name}" for name in names]
    if is_flag:
        options.add_argument(*words, dest=names[0], nargs="?", const="true", metavar="true|false", help=text)
    else:
        options.add_argument(*words, dest=names[0], metavar="VALUE", help=text)


def parse_command_line(words: Sequence[str], origin: str = "the command line") -> dict[str, str]:
    """Parse `--name=value`, `--name value` and bare `--flag`; `-` and `_` are the same in names.

    Args:
        words: the words after the program's name.
        origin: what errors call the command line.

    Returns:
        The values as text, by argument name; none is validated. Several words after one of vLLM's names are one value,
        quoted as in a shell.

    Raises:
        ArgumentsError: an unknown name, a missing value or a stray word.
    """
    try:
        namespace, rest = create_parser().parse_known_args([_normalize_word(word) for word in words])
    except argparse.ArgumentError as error:
        raise ArgumentsError(f"{origin} is wrong: {error}") from error
    values: dict[str, str] = vars(namespace)
    for name, option_words in _group_words(rest, origin):
        check_known(name, Origin(origin))
        values[name] = option_words[0] if len(option_words) == 1 else shlex.join(option_words) or "true"
    return values


def separate_words(words: Sequence[str], command: type[ArgumentGroup]) -> SeparatedWords:
    """Separate the arguments of a command, those of the server, and texts.

    A flag takes the next word only if that is a boolean. Several words may follow one of vLLM's names, as they may on
    the server's command line. After `--` there are texts only.

    Args:
        words: the words after the command's name.

    Raises:
        ArgumentsError: the last word is the name of an argument that needs a value.
    """
    flags = {
        alias: _is_flag(field)
        for group in (command, *GROUPS)
        for name, field in group.model_fields.items()
        for alias in _list_names(name)
    }
    flags |= {name: name in _FLAGS_WITHOUT_EFFECT for name in WITHOUT_EFFECT}
    separated = SeparatedWords({}, [], [])
    waiting = deque(words)
    while waiting and (word := waiting.popleft()) != "--":
        name, equals, value = _normalize_word(word).removeprefix("--").partition("=")
        if not word.startswith("-") or word == "-":
            separated.texts.append(word)
        elif not word.startswith("--") or name not in flags:
            separated.server_words.append(word)
            while not equals and waiting and not waiting[0].startswith("-"):
                separated.server_words.append(waiting.popleft())
        else:
            if not equals and flags[name]:
                value = waiting.popleft() if waiting and waiting[0].lower() in _BOOLEANS else "true"
            elif not equals:
                if not waiting:
                    raise ArgumentsError(f"the command line is wrong: argument --{name}: expected one argument")
                value = waiting.popleft()
            if name in command.model_fields:
                separated.command_values[name] = value
            else:
                separated.server_words.append(f"--{name}={value}")
    separated.texts.extend(waiting)
    return separated


def _group_words(words: Iterable[str], origin: str) -> list[tuple[str, list[str]]]:
    """Group words by option: `--lora_modules a=x b=y` is one option with two words."""
    options: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            options.append((normalize_name(name), [value] if equals else []))
        elif short := _SHORT_OPTION.match(word):
            value = short["value"]
            options.append((normalize_name(short["name"]), [] if value is None else [value]))
        elif options:
            options[-1][1].append(word)
        else:
            raise ArgumentsError(f"{origin} has a stray word {word!r}; arguments look like --name=value")
    return options


def _normalize_word(word: str) -> str:
    if level := _OPTIMIZATION.match(word):
        return "--optimization_level" + (f"={level['level']}" if level["level"] else "")
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"
