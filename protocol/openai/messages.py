"""The messages of a chat, checked and brought into the form that chat templates expect; the rules are vLLM's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

logger = logging.getLogger(__name__)

# The field with the text of a part, by the part's type.
_TEXT_BY_TYPE = {
    "text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal", "thinking": "thinking",
}  # fmt: skip


def read_messages(
    messages: Sequence[Mapping[str, Any]], limits: RequestLimits, param: str = "messages"
) -> list[dict[str, Any]]:
    """Messages with the fields that templates know; the content is a string, a list of text parts, or None.

    Raises:
        LimitExceededError: there are too many messages, or parts of all messages.
        InputError: a message has no role, content that is no text, or malformed tool calls. The error names the
            message's position in the field `param`.
    """
    check_messages(messages, limits, param)
    return [_read_message(message, f"{param}[{position}]", param) for position, message in enumerate(messages)]


def check_messages(messages: Sequence[Any], limits: RequestLimits, param: str = "messages") -> None:
    """
    Raises:
        LimitExceededError: there are too many messages, or parts of all messages.
    """
    limits.check("max_messages", len(messages), "messages", param)
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = sum(len(content) for content in contents if isinstance(content, list))
    limits.check("max_client_batch_size", parts, "parts of messages", param)


def _read_message(message: Mapping[str, Any], name: str, param: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise InputError(f"{name} has no role", param)
    read: dict[str, Any] = {"role": role, "content": _read_content(message.get("content"), name, param)}
    if role == "assistant":
        if calls := message.get("tool_calls"):
            read["tool_calls"] = _read_tool_calls(calls, name, param)
        reasoning = message.get("reasoning", message.get("reasoning_content"))
        if isinstance(reasoning, str):
            read |= {"reasoning": reasoning, "reasoning_content": reasoning}
    elif role == "tool" and "tool_call_id" in message:
        read["tool_call_id"] = message["tool_call_id"]
    elif role == "developer":
        read["tools"] = message.get("tools")
    if isinstance(message.get("name"), str):
        read["name"] = message["name"]
    return read


def _read_content(content: Any, name: str, param: str) -> str | list[dict[str, str]] | None:
    if content is None or isinstance(content, str):
        return content
    texts = [_read_part(part) for part in content] if isinstance(content, list) else [None]
    if None in texts:
        raise InputError(f"{name} has content that is no text", param)
    return [{"type": "text", "text": text} for text in texts if text is not None]


def _read_part(part: Any) -> str | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        return None
    text = part.get(_TEXT_BY_TYPE.get(kind, ""))
    return text if isinstance(text, str) else None


def _read_tool_calls(calls: Any, name: str, param: str) -> list[dict[str, Any]]:
    """Tool calls with their arguments as an object: clients send these as a string of JSON."""
    if not isinstance(calls, list):
        raise InputError(f"{name}.tool_calls must be a list", param)
    read = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise InputError(f"{name}.tool_calls must be calls of functions", param)
        read.append({**call, "function": {**function, "arguments": _read_arguments(function.get("arguments"))}})
    return read


def _read_arguments(arguments: Any) -> dict[str, Any]:
    """The arguments of a call as an object; an empty one if they are none, so that the chat can still continue."""
    if isinstance(arguments, str) and arguments:
        try:
            arguments = msgspec.json.decode(arguments)
        except (msgspec.DecodeError, RecursionError):
            logger.debug("a tool call's arguments are no JSON")
    return arguments if isinstance(arguments, dict) else {}
