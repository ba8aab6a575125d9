"""Limits on the constraints that vLLM compiles: its library xgrammar takes minutes for some short ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from runners.core.errors import InputError
from runners.core.output_constraints import MAX_CHARACTERS, MAX_CHOICE_TEXTS, check_schema

# Each of these takes about a second to compile.
_MAX_CHOICE_CHARACTERS = 16_384
_MAX_ALTERNATIVES = 512
_MAX_REPETITIONS = 64
_MAX_COUNT = 100_000
_COMBINING = ("oneOf", "anyOf", "allOf")
# An escape, a class, a parenthesis, or a repetition.
_PART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()]|[*+?]\??|\{(\d+)(?:,(\d*))?\}", re.DOTALL)


def check_constraint(constraint: dict[str, Any], param: str) -> None:
    """
    Args:
        constraint: vLLM's `structured_outputs`, or OpenAI's `response_format` or `text`.

    Raises:
        InputError: it has too many choices or characters, or too many nested or repeated parts.
    """
    choices = constraint.get("choice")
    if isinstance(choices, list):
        _check(f"{param} has {{}} choices", len(choices), MAX_CHOICE_TEXTS, param)
        characters = sum(len(choice) for choice in choices if isinstance(choice, str))
        _check(f"the choices of {param} have {{}} characters", characters, _MAX_CHOICE_CHARACTERS, param)
    for kind in ("regex", "grammar", "structural_tag"):
        if isinstance(value := constraint.get(kind), str):
            _check(f"the {kind} of {param} has {{}} characters", len(value), MAX_CHARACTERS, param)
    if isinstance(pattern := constraint.get("regex"), str):
        _check_pattern(pattern, f"the regex of {param}", param)
    if (schema := _find_schema(constraint)) is not None:
        _check_schema(schema, param)


def check_tools(tools: list[Any]) -> None:
    """Check the schemas of functions, which the arguments of a forced call must match.

    Raises:
        InputError: as `check_constraint`.
    """
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(schema := function.get("parameters"), dict):
            _check_schema(schema, "tools")


def _check(what: str, count: int, limit: int, param: str) -> None:
    if count > limit:
        raise InputError(f"{what.format(count)}; {limit} are the most", param)


def _check_pattern(pattern: str, what: str, param: str) -> None:
    repetitions, counted = 0, [1]
    # The count inside the previous group, class or character.
    last = 1
    for part in _PART.finditer(pattern):
        match part[0][0]:
            case "(":
                counted.append(1)
                last = 1
            case ")" if len(counted) > 1:
                last = counted.pop()
                counted[-1] = max(counted[-1], last)
            case "*" | "+" | "?":
                repetitions += 1
            case "{":
                repetitions += 1
                inside = last if pattern[part.start() - 1] == ")" else 1
                counted[-1] = max(counted[-1], inside * max(int(part[1]), int(part[2] or 0), 1))
    _check(f"{what} has {{}} repetitions", repetitions, _MAX_REPETITIONS, param)
    _check(f"{what} counts to {{}} inside each other", max(counted), _MAX_COUNT, param)


def _find_schema(constraint: dict[str, Any]) -> dict[str, Any] | str | None:
    """The JSON schema, decoded; None if there is none, or one that vLLM will refuse."""
    nested = constraint["format"] if isinstance(constraint.get("format"), dict) else constraint
    schema = nested.get("json", nested.get("schema", nested.get("json_schema")))
    if isinstance(schema, dict) and isinstance(schema.get("schema"), dict):
        schema = schema["schema"]
    if isinstance(schema, str) and len(schema) <= MAX_CHARACTERS:
        try:
            schema = msgspec.json.decode(schema)
        except (msgspec.DecodeError, RecursionError):
            return None
    return schema if isinstance(schema, dict | str) else None


def _check_schema(schema: dict[str, Any] | str, param: str) -> None:
    check_schema(schema, param)
    count = 0
    for node in _iterate(schema):
        count += sum(len(node[name]) for name in _COMBINING if isinstance(node.get(name), list))
        if _refers_to_itself(node, schema):
            raise InputError(f"the schema of {param} has a $ref that leads to itself", param)
    _check(f"the schema of {param} has {{}} alternatives (oneOf, anyOf, allOf)", count, _MAX_ALTERNATIVES, param)


def _iterate(value: object) -> Iterator[dict[str, Any]]:
    """All objects in a value, which is not nested deeply."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _iterate(child)


def _refers_to_itself(node: dict[str, Any], root: object) -> bool:
    """Whether references lead in a circle, so that nothing can match."""
    seen: set[str] = set()
    target: object = node
    while isinstance(target, dict) and isinstance(reference := target.get("$ref"), str):
        if reference in seen:
            return True
        seen.add(reference)
        target = _resolve(reference, root)
    return False


def _resolve(reference: str, root: object) -> object:
    """The target of a reference within the schema (https://www.rfc-editor.org/rfc/rfc6901); None for other ones."""
    if not reference.startswith("#"):
        return None
    found = root
    for step in reference[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found
