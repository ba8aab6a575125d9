"""What a body may ask of vLLM's own layer, which bounds few amounts itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from protocol.http.body import decode_json
from protocol.openai.constraint_bounds import check_constraint, check_tools
from protocol.openai.messages import check_messages, count_characters
from protocol.openai.ranking import SIDES
from runners.core.admission import check_prompts
from runners.core.request_limits import RequestLimits

# Where routes have texts: completions and tokenize, embeddings, classification, rankings, responses, messages.
_TEXTS = ("prompt", "input", "query", *(name for side in SIDES for name in side), "suffix", "instructions", "system")
# What costs something at each token.
_LISTS = (
    ("stop", "max_stop_strings", "stop strings"),
    ("bad_words", "max_stop_strings", "bad_words"),
    ("logit_bias", "max_logit_bias", "tokens in logit_bias"),
    ("stop_token_ids", "max_logit_bias", "stop_token_ids"),
)


_FIELDS = (
    *dict.fromkeys(_TEXTS), *(name for name, *_ in _LISTS),
    "messages", "tools", "n", "chat_template_kwargs", "structured_outputs", "response_format", "text",
)  # fmt: skip
# The fields of which there may be much; what they must be is vLLM's to say.
_Body = msgspec.defstruct("_Body", [(name, Any, None) for name in _FIELDS])
_decoder = msgspec.json.Decoder(_Body)


def check_forwarded(body: bytes, limits: RequestLimits) -> int:
    """The characters of a request's texts.

    Args:
        body: of a request that vLLM will answer.

    Raises:
        InputError: it is no JSON object, or has a constraint that is too large.
        LimitExceededError: it has too many texts, messages, outputs, or whatever costs something at each token.
    """
    call: Any = decode_json(body, _decoder, limits)
    choices = call.n if isinstance(call.n, int) else 1
    characters = sum(_check_texts(name, getattr(call, name), choices, limits) for name in dict.fromkeys(_TEXTS))
    if isinstance(call.messages, list):
        check_messages(call.messages, limits)
        kwargs = call.chat_template_kwargs if isinstance(call.chat_template_kwargs, dict) else {}
        tools = call.tools if isinstance(call.tools, list) else None
        characters += count_characters(limits, call.messages, tools, kwargs)
        check_prompts(limits, [""], choices)
    if isinstance(call.tools, list):
        check_tools(call.tools)
    for name, argument, what in _LISTS:
        if isinstance(value := getattr(call, name), list | dict):
            limits.check(argument, len(value), what, name)
    for name in ("structured_outputs", "response_format", "text"):
        if isinstance(value := getattr(call, name), dict):
            check_constraint(value, name)
    return characters


def _check_texts(name: str, given: Any, choices: int, limits: RequestLimits) -> int:
    """Bound a text, or texts, token ids, lists of these, or objects with parts; the characters of all texts."""
    if name == "input" and isinstance(given, list) and given and isinstance(given[0], dict):
        check_messages(given, limits, name)
        return count_characters(limits, given)
    texts = [*_find_texts(given)]
    if name == "prompt":
        return check_prompts(limits, texts, choices)
    limits.check("max_client_batch_size", len(texts), f"texts in {name}", name)
    # A text after the other, since those of embeddings and rankings are no outputs.
    characters = sum(check_prompts(limits, [text]) for text in texts)
    limits.check("max_request_characters", characters, f"characters in {name}", name)
    return characters


def _find_texts(given: Any) -> Iterator[str]:
    """All texts of a field, wherever it has them; "" for each list of token ids."""
    match given:
        case str():
            yield given
        case [int(), *_]:
            yield ""
        case list():
            for item in given:
                yield from _find_texts(item)
        case dict():
            yield from _find_texts([given.get("content"), given.get("text")])
