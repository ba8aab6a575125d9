"""Messages as chat templates expect them; vLLM's own rules are the reference."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.openai.messages import read_messages
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}


def call_with(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "weather", "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "read"),
    [
        ({"role": "user", "content": "a", "extra": 1}, {"role": "user", "content": "a"}),
        ({"role": "user", "content": "a", "name": "b"}, {"role": "user", "content": "a", "name": "b"}),
        ({"role": "user"}, {"role": "user", "content": None}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, "b", {"type": "input_text", "text": "c"}]},
            {"role": "user", "content": [{"type": "text", "text": text} for text in "abc"]},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}], "tool_calls": []},
            {"role": "assistant", "content": [{"type": "text", "text": "no"}]},
        ),
        (
            {"role": "assistant", "content": "a", "reasoning_content": "b"},
            {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "b"},
        ),
        ({"role": "tool", "content": "a", "tool_call_id": "1"}, {"role": "tool", "content": "a", "tool_call_id": "1"}),
        ({"role": "robot", "content": "a"}, {"role": "robot", "content": "a"}),
    ],
)
def test_a_message(message: dict[str, Any], read: dict[str, Any]) -> None:
    assert read_messages([message], RequestLimits()) == [read]


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"city": "Rome"}', {"city": "Rome"}), ({"city": "Rome"}, {"city": "Rome"}), ("", {}), (None, {}),
        ("not JSON", {}), ("[1]", {}), ("1", {}), ([1], {}), ("[" * 10_000, {}),
    ],
)  # fmt: skip
def test_arguments_of_calls_are_objects(arguments: Any, read: dict[str, Any]) -> None:
    [message] = read_messages([{"role": "assistant", "tool_calls": [call_with(arguments)]}], RequestLimits())
    assert message["tool_calls"] == [call_with(read)]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "a"}, "messages[0] has no role"),
        ({"role": 1}, "messages[0] has no role"),
        ({"role": "user", "content": {"text": "a"}}, "messages[0] has content that is no text"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0] has content that is no text",
        ),
        ({"role": "user", "content": [{"type": ["text"], "text": "a"}]}, "messages[0] has content that is no text"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "messages[0] has content that is no text"),
        ({"role": "assistant", "tool_calls": "a"}, "messages[0].tool_calls must be a list"),
        ({"role": "assistant", "tool_calls": ["a"]}, "messages[0].tool_calls must be calls of functions"),
        ({"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}, "messages[0].tool_calls must be calls of"),
    ],
)
def test_what_is_refused(message: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        read_messages([message], RequestLimits())
    assert str(raised.value).startswith(error)
    assert raised.value.param == "messages"
