"""Limits of prompts, checked before they are tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from runners.core.generation import Chat, Prompt
from runners.core.request_limits import RequestLimits


def check_prompts(limits: RequestLimits, prompts: Sequence[Prompt], choices: int = 1) -> int:
    """Check the number and the lengths of prompts.

    Args:
        choices: number of continuations of each prompt.

    Returns:
        The number of characters of all prompts; token ids have none.

    Raises:
        LimitExceededError: there are too many outputs, tools of a chat, or characters of a prompt or of all.
    """
    limits.check("max_choices", len(prompts) * choices, "outputs, prompts times n,")
    lengths = [len(prompt) for prompt in prompts if isinstance(prompt, str)]
    limits.check("max_text_characters", max(lengths, default=0), "characters of a prompt")
    characters = sum(lengths)
    limits.check("max_request_characters", characters, "characters of all prompts")
    return characters + sum(_count_characters(limits, prompt) for prompt in prompts if isinstance(prompt, Chat))


def _count_characters(limits: RequestLimits, chat: Chat) -> int:
    """The characters of a chat as JSON, from which its prompt is made; parts without text, as images, do not count.

    Raises:
        LimitExceededError: there are too many characters or tools.
    """
    tools = chat.tools or ()
    limits.check("max_parameters", len(tools), "tools", "tools")
    characters = 0
    # Pieces are encoded one by one, so that a chat that is far too large is not encoded as a whole.
    for piece in (*map(_without_media, chat.messages), *tools, *chat.variables.values()):
        characters += len(msgspec.json.encode(piece).decode())
        limits.check("max_text_characters", characters, "characters of a chat")
    return characters


def _without_media(message: Any) -> Any:
    """The message with the text parts of its content only."""
    if not isinstance(message, dict) or not isinstance(content := message.get("content"), list):
        return message
    return {**message, "content": [part for part in content if not isinstance(part, dict) or "text" in part]}
