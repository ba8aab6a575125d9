"""The messages of a chat in the form that a chat template expects; the rules are vLLM's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError, nodes

from runners.core.generation import join_text_parts
from runners.generator.chat_templates import parse_template


def shape_messages(messages: Sequence[Mapping[str, Any]], template: str) -> list[dict[str, Any]]:
    """
    Args:
        messages: as in `runners.core.generation.Chat`.

    Returns:
        The messages. Their content is a list of parts if the template iterates over parts, and one text otherwise. The
        role `developer` is `system` if the template does not know it.
    """
    shaped = [_shape_content(message, find_content_format(template)) for message in messages]
    knows_developers = '"developer"' in template or "'developer'" in template
    return shaped if knows_developers else _without_developers(shaped)


@lru_cache(maxsize=8)
def find_content_format(template: str) -> Literal["string", "openai"]:
    """The form of content that a template expects: one text ("string"), or a list of parts ("openai")."""
    try:
        tree = parse_template(template)
    except TemplateError:
        return "string"
    return "openai" if any(_is_content(loop.iter) for loop in tree.find_all(nodes.For)) else "string"


def _is_content(node: nodes.Node | None) -> bool:
    """Whether a loop iterates over a message's content, a slice of it, or a variable of that name."""
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
        return {**message, "content": join_text_parts(content)}
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return {**message, "content": parts or []}


def _without_developers(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages without the role `developer`: its texts are joined with those of `system` in the first message."""
    if all(message["role"] != "developer" for message in messages):
        return messages
    renamed = [
        {**message, "role": "system"} if message["role"] == "developer" else message
        for message in ({key: value for key, value in fields.items() if key != "tools"} for fields in messages)
    ]
    systems = [message for message in renamed if message["role"] == "system"]
    if systems == renamed[:1]:
        return renamed
    texts = [text for message in systems if (text := join_text_parts(message["content"]))]
    others = [message for message in renamed if message["role"] != "system"]
    return [{"role": "system", "content": "\n\n".join(texts)}, *others]
