"""Forced tools: the schema of their calls, and the calls in a text, whole and in parts."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import msgspec
import openai
import pytest

from protocol.openai.tools import (
    CallReader,
    NamedFunction,
    NamedTool,
    Tool,
    check_choice,
    constrain_to_tools,
    describe_tools,
    read_calls,
)
from runners.core.errors import InputError

CITY = {
    "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}
TOOLS = msgspec.convert([WEATHER, CLOCK], list[Tool])
NAMED = NamedTool(function=NamedFunction(name="weather"))
QUESTION: Any = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [
        ('[{"name": "weather", "parameters": {"city": "Rome"}}]', True),
        ('[{"name": "weather", "parameters": {"city": "Rome"}}, {"name": "clock", "parameters": {}}]', True),
        ("[]", False),
        ('[{"name": "weather", "parameters": {"city": "Bonn"}}]', False),
        ('[{"name": "clock"}]', False),
        ('[{"name": "nobody", "parameters": {}}]', False),
    ],
)
def test_a_required_call_is_one_of_a_tool(text: str, is_valid: bool) -> None:
    constraint = constrain_to_tools(TOOLS, "required", parallel=True)
    assert constraint.kind == "json"
    assert jsonschema.Draft202012Validator(json.loads(str(constraint.value))).is_valid(json.loads(text)) == is_valid


def test_calls_may_be_one_at_a_time() -> None:
    constraint = constrain_to_tools(TOOLS, "required", parallel=False)
    two = [{"name": "clock", "parameters": {}}] * 2
    assert not jsonschema.Draft202012Validator(json.loads(str(constraint.value))).is_valid(two)


def test_a_named_tool_is_the_schema_of_its_arguments() -> None:
    assert json.loads(str(constrain_to_tools(TOOLS, NAMED, True).value)) == CITY
    clock = NamedTool(function=NamedFunction(name="clock"))
    assert json.loads(str(constrain_to_tools(TOOLS, clock, True).value)) == {"type": "object", "properties": {}}


def test_definitions_are_those_of_the_whole_schema() -> None:
    def tool(name: str, cities: list[str]) -> Tool:
        schema = {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/City"}},
            "$defs": {"City": {"enum": cities}},
        }
        return msgspec.convert({"function": {"name": name, "parameters": schema}}, Tool)

    schema = json.loads(str(constrain_to_tools([tool("a", ["Rome"]), tool("b", ["Rome"])], "required", True).value))
    validator = jsonschema.Draft202012Validator(schema)
    assert validator.is_valid([{"name": "b", "parameters": {"city": "Rome"}}])
    assert not validator.is_valid([{"name": "b", "parameters": {"city": "Bonn"}}])
    with pytest.raises(InputError, match="two tools have different definitions of City"):
        constrain_to_tools([tool("a", ["Rome"]), tool("b", ["Bonn"])], "required", True)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        (None, "required", "tool_choice needs tools"),
        (None, "auto", "tool_choice needs tools"),
        (TOOLS, NamedTool(function=NamedFunction(name="x")), "tool_choice names none of the tools"),
    ],
)
def test_a_choice_without_its_tool_is_refused(tools: Any, choice: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_choice(tools, choice)


def test_templates_are_given_what_vllm_gives_them() -> None:
    assert describe_tools(TOOLS) == [
        {"type": "function", "function": {"name": "weather", "description": None, "parameters": CITY}},
        {"type": "function", "function": {"name": "clock", "description": None, "parameters": None}},
    ]


CALLS = '[ {"name": "weather", "parameters": {"a": [1, {"b": "}]\\"{"}], "name": "x"}},\n{"name":"clo\\"ck","parameters":{}}]'
EXPECTED = [("weather", {"a": [1, {"b": '}]"{'}], "name": "x"}), ('clo"ck', {})]


@pytest.mark.parametrize("size", [1, 2, 3, 7, len(CALLS)])
def test_calls_are_read_in_parts_of_any_size(size: int) -> None:
    reader, calls = CallReader("required"), dict[int, dict[str, Any]]()
    for start in range(0, len(CALLS), size):
        for delta in reader.read(CALLS[start : start + size]):
            if delta["index"] not in calls:
                assert delta["id"].startswith("call_")
                assert delta["type"] == "function"
                calls[delta["index"]] = {"name": delta["function"]["name"], "arguments": ""}
            calls[delta["index"]]["arguments"] += delta["function"]["arguments"]
    assert [(call["name"], json.loads(call["arguments"])) for call in calls.values()] == EXPECTED
    assert list(calls) == [0, 1]


@pytest.mark.parametrize(
    ("choice", "text", "expected"),
    [
        ("required", CALLS, [("weather", '{"a": [1, {"b": "}]\\"{"}], "name": "x"}'), ('clo"ck', "{}")]),
        # Cut off by max_tokens: as in a stream.
        ("required", '[{"name": "weather", "parameters": {"ci', [("weather", '{"ci')]),
        ("required", '[{"name": "wea', []),
        (NAMED, '{"city": "Rome"}', [("weather", '{"city": "Rome"}')]),
        (NAMED, "", []),
    ],
)
def test_calls_of_a_whole_text(choice: Any, text: str, expected: list[tuple[str, str]]) -> None:
    calls = read_calls(choice, text)
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == expected
    assert len({call["id"] for call in calls}) == len(calls)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
)
def test_a_chat_that_must_call(client: openai.OpenAI, choice: Any, reason: str) -> None:
    given: Any = {"model": "llama", "messages": QUESTION, "tools": [WEATHER], "tool_choice": choice, "seed": 1}
    given |= {"max_tokens": 400, "parallel_tool_calls": False}
    [answered] = client.chat.completions.create(**given).choices
    [call] = answered.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    assert (answered.finish_reason, answered.message.content) == (reason, None)
    with client.chat.completions.stream(**given) as stream:
        [streamed] = stream.get_final_completion().choices
    [again] = streamed.message.tool_calls or []
    assert again.function.arguments == call.function.arguments
    assert streamed.finish_reason == reason
