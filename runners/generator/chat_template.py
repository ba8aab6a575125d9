"""The messages of a chat in the form that a chat template expects, as vLLM has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError, nodes

from runners.generator.templates import make_environment


def shape_messages(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """
    Args:
        messages: their content is a string, a list of parts with a `type` and a `text`, or None.

    Returns:
        Messages whose content is parts where the template goes through them, and one text where it does not; a
        developer's are the system's where the template knows no developers.
    """
    shaped = [_shape_content(message, find_content_format(template)) for message in messages]
    knows_developers = '"developer"' in template or "'developer'" in template
    return shaped if knows_developers else _without_developers(shaped)


@lru_cache(maxsize=8)
def find_content_format(template: str) -> Literal["string", "openai"]:
    """Whether a template goes through the parts of a message's content, or takes it as one text."""
    try:
        tree = make_environment().parse(template)
    except TemplateError:
        return "string"
    return "openai" if any(_is_content(loop.iter) for loop in tree.find_all(nodes.For)) else "string"


def _is_content(node: nodes.Node | None) -> bool:
    """Whether a loop goes through a message's content, or a part of it; or through a variable of that name."""
    if isinstance(node, nodes.Name):
        return node.name == "content"
    while isinstance(node, nodes.Filter | nodes.Test) or (
        isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
    ):
        node = node.node
    match node:
        case nodes.Getitem(arg=nodes.Const(value="content")) | nodes.Getattr(attr="content"):
            return True
    return False


def _shape_content(message: Mapping[str, Any], content_format: Literal["string", "openai"]) -> dict[str, Any]:
    content = message.get("content")
    if content_format == "string" or message["role"] == "tool":
        return {**message, "content": _join(content)}
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": parts or []}


def _join(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content or ())


def _without_developers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A developer's messages as those of the system, of which there is one, the first."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    renamed = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in ({key: value for key, value in each.items() if key != "tools"} for each in messages)
    ]
    systems = [message for message in renamed if message["role"] == "system"]
    if systems == renamed[:1]:
        return renamed
    texts = [text for message in systems if (text := _join(message["content"]))]
    others = [message for message in renamed if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]
