"""Tools of a chat: the constraint that forces calls, and the calls in an output.

Calls are forced by a JSON schema of the whole output, as in vLLM. If the request names a tool, the output is its
arguments; if it requires any tool, the output is a list of calls.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runners.core.errors import InputError
from runners.core.generation import Constraint
from runners.core.output_constraints import constrain_to_schema

_MAX_TOOLS = 128
_NAME = re.compile(r'"name"\s*:\s*("(?:[^"\\]|\\.)*")')
# Depths of brackets in a list of calls: within a call, and within its arguments.
_IN_CALL, _IN_ARGUMENTS = 2, 3

Name = Annotated[str, Meta(min_length=1)]


class Function(msgspec.Struct, kw_only=True):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool, which is always a function."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(msgspec.Struct, kw_only=True):
    name: Name


class NamedTool(msgspec.Struct, kw_only=True):
    """The `tool_choice` that names a function."""

    type: Literal["function"] = "function"
    function: NamedFunction


Tools = Annotated[list[Tool], Meta(min_length=1, max_length=_MAX_TOOLS)]
ToolChoice = Literal["none", "auto", "required"] | NamedTool


def check_choice(tools: Sequence[Tool] | None, choice: ToolChoice | None) -> None:
    """
    Raises:
        InputError: there is no such tool.
    """
    if choice in (None, "none"):
        return
    if tools is None:
        raise InputError("tool_choice needs tools", "tool_choice")
    if isinstance(choice, NamedTool) and all(tool.function.name != choice.function.name for tool in tools):
        raise InputError("tool_choice names none of the tools", "tool_choice")


def describe_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools in the form that chat templates expect."""
    return [{"type": tool.type, "function": _describe_function(tool.function)} for tool in tools]


def _describe_function(function: Function) -> dict[str, Any]:
    described = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return described if function.strict is None else {**described, "strict": function.strict}


def constrain_to_tools(tools: Sequence[Tool], choice: ToolChoice, parallel: bool) -> Constraint:
    """The constraint of an output that consists of calls of tools.

    Args:
        choice: the named tool, or `required`.
        parallel: whether there may be several calls.

    Raises:
        InputError: two tools have different definitions of the same name.
    """
    if isinstance(choice, NamedTool):
        [named, *_] = [tool.function for tool in tools if tool.function.name == choice.function.name]
        return constrain_to_schema(_parameters(named), "tools")
    calls = [_describe_call(tool.function) for tool in tools]
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"type": "object", "anyOf": calls}}
    if not parallel:
        schema["maxItems"] = 1
    if definitions := _collect_definitions(tools):
        schema["$defs"] = definitions
    return constrain_to_schema(schema, "tools")


def _parameters(function: Function) -> dict[str, Any]:
    """The JSON schema of a function's arguments.

    Raises:
        InputError: the schema is not of type object.
    """
    parameters = function.parameters or {"type": "object", "properties": {}}
    if (kind := parameters.get("type", "object")) != "object":
        raise InputError(f"parameters of the tool {function.name} must be of type object, not {kind}", "tools")
    return parameters if "type" in parameters or "$ref" in parameters else {**parameters, "type": "object"}


def _describe_call(function: Function) -> dict[str, Any]:
    arguments = {name: value for name, value in _parameters(function).items() if name != "$defs"}
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function.name]}, "parameters": arguments},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _collect_definitions(tools: Sequence[Tool]) -> dict[str, Any]:
    """The `$defs` of all tools: references within the schemas refer to the root of the combined schema."""
    definitions_by_name: dict[str, Any] = {}
    for tool in tools:
        definitions = (tool.function.parameters or {}).get("$defs", {})
        if not isinstance(definitions, dict):
            raise InputError(f"$defs of the tool {tool.function.name} must be an object", "tools")
        for name, definition in definitions.items():
            if definitions_by_name.setdefault(name, definition) != definition:
                raise InputError(f"two tools have different definitions of {name}", "tools")
    return definitions_by_name


class CallReader:
    """Reads the calls in a text that comes in pieces, as OpenAI's deltas of `tool_calls`.

    The first delta of a call has its name; the arguments follow in pieces.
    """

    def __init__(self, choice: ToolChoice) -> None:
        self._choice = choice
        self._calls = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._head = ""

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return bool(self._calls)

    def read(self, text: str) -> list[dict[str, Any]]:
        """The deltas of the next piece of text."""
        if isinstance(self._choice, NamedTool):
            if not text:
                return []
            return [self._continue(text) if self._calls else self._open(self._choice.function.name, text)]
        deltas: list[dict[str, Any]] = []
        start: int | None = 0 if self._depth >= _IN_ARGUMENTS else None
        name = ""
        for position, character in enumerate(text):
            before = self._depth
            self._track(character)
            if before < _IN_ARGUMENTS <= self._depth and (name_match := _NAME.search(self._head)):
                start, name = position, msgspec.json.decode(name_match[1], type=str)
            elif self._depth < _IN_ARGUMENTS <= before and start is not None:
                deltas.append(self._make_delta(name, text[start : position + 1]))
                start, name, self._head = None, "", ""
            elif self._depth == _IN_CALL:
                self._head += character
        if start is not None and start < len(text):
            deltas.append(self._make_delta(name, text[start:]))
        return deltas

    def _make_delta(self, name: str, arguments: str) -> dict[str, Any]:
        return self._open(name, arguments) if name else self._continue(arguments)

    def _track(self, character: str) -> None:
        if self._in_string:
            self._in_string = self._escaped or character != '"'
            self._escaped = character == "\\" and not self._escaped
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1

    def _open(self, name: str, arguments: str) -> dict[str, Any]:
        self._calls += 1
        call = {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function"}
        return {"index": self._calls - 1, **call, "function": {"name": name, "arguments": arguments}}

    def _continue(self, arguments: str) -> dict[str, Any]:
        return {"index": self._calls - 1, "function": {"arguments": arguments}}


def read_calls(choice: ToolChoice, text: str) -> list[dict[str, Any]]:
    """The calls in a whole text, as the `tool_calls` of a message."""
    calls: list[dict[str, Any]] = []
    for delta in CallReader(choice).read(text):
        if "id" in delta:
            calls.append({"id": delta["id"], "type": delta["type"], "function": delta["function"]})
        else:
            calls[-1]["function"]["arguments"] += delta["function"]["arguments"]
    return calls
