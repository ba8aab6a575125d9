"""Chats to text by a model's chat template, as vLLM renders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

from jinja2 import TemplateError, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from runners.errors import InputError

# What `apply_chat_template` is told by this server, or has no meaning for a text.
_OWN = frozenset({"chat_template", "tokenize", "conversation", "messages"})
_OF_TOKENS = frozenset(
    {
        "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
        "tokenizer_kwargs",
    }
)  # fmt: skip


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
) -> str:
    """The text of a chat.

    Args:
        messages: their content is a string or a list of parts with a `type` and a `text`.
        variables: of the template.

    Raises:
        InputError: the model has no chat template, it refuses the messages, or a variable is this server's own.
    """
    if unexpected := sorted(_OWN & {*variables}):
        raise InputError(f"chat_template_kwargs cannot have {unexpected[0]}")
    given = None if tools is None else [dict(tool) for tool in tools]
    try:
        template = tokenizer.get_chat_template(tools=given)
    except ValueError as error:
        raise InputError("this model has no chat template: use completions") from error
    shaped = [_shape_content(message, find_content_format(template)) for message in messages]
    knows_developers = '"developer"' in template or "'developer'" in template
    conversation = shaped if knows_developers else _without_developers(shaped)
    known = {name: value for name, value in variables.items() if name not in _OF_TOKENS}
    known = {"tools": given, "add_generation_prompt": not known.get("continue_final_message"), **known}
    try:
        return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **known))
    except Exception as error:
        # A template is the model's own code: whatever it raises, these messages are not for it.
        raise InputError(f"the chat template refuses the messages: {_reason(error)}") from error


@lru_cache(maxsize=8)
def find_content_format(template: str) -> Literal["string", "openai"]:
    """Whether a template goes through the parts of a message's content, or takes it as one text."""
    try:
        tree = _compile_jinja_template(template).environment.parse(template)
    except TemplateError:
        return "string"
    return "openai" if any(_is_content(loop.iter) for loop in tree.find_all(nodes.For)) else "string"


def _is_content(node: nodes.Node | None) -> bool:
    match node:
        case nodes.Filter() | nodes.Test():
            return _is_content(node.node)
        case nodes.Getitem(arg=nodes.Slice()):
            return _is_content(node.node)
        case nodes.Getitem(arg=nodes.Const(value="content")) | nodes.Getattr(attr="content"):
            return True
        case nodes.Name(name="content"):
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


def _reason(error: BaseException) -> str:
    """What the template itself says, where something else has wrapped it."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, TemplateError):
            return str(current)
        current = current.__cause__ or current.__context__
    return str(error)
