"""`--log_inputs`: the first characters of a request's texts in the log, because the operator asks for them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from runners.core.generation import Chat, Prompt, join_text_parts
from runners.core.predictions import TextInput, TokenInput

logger = logging.getLogger(__name__)

# The texts of a request that the log has.
MOST_TEXTS = 4


def log_inputs(inputs: Sequence[TextInput | TokenInput | Prompt], characters: int) -> None:
    """Log the first characters of the first texts.

    Args:
        inputs: the texts, pairs, tokens, prompts or chats of a request.
        characters: the most characters of each; 0 for no line.
    """
    if characters > 0:
        shown = [_show(each, characters) for each in inputs[:MOST_TEXTS]]
        logger.info("inputs of a request, %d in all:", len(inputs), extra={"inputs": shown})


def _show(each: TextInput | TokenInput | Prompt, characters: int) -> str:
    match each:
        case str():
            return each[:characters]
        case TextInput():
            return (each.text if each.pair is None else f"{each.text}\n{each.pair}")[:characters]
        case Chat():
            return "\n".join(join_text_parts(message.get("content")) for message in each.messages)[:characters]
    ids = each.input_ids if isinstance(each, TokenInput) else each
    # A token has one digit at least.
    return " ".join(str(token) for token in ids[:characters])[:characters]
