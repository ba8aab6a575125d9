"""Limits on the requests that vLLM's OpenAI application answers, and the fields that it would not understand.

vLLM itself limits few amounts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from protocol.http.body import decode_json, make_fields_decoder
from protocol.openai.constraint_limits import check_constraint, check_tools
from protocol.openai.messages import check_messages
from protocol.openai.ranking import SIDES
from protocol.openai.response_formats import is_grammar
from runners.core.errors import InputError, UnsupportedError
from runners.core.generation import Chat
from runners.core.output_constraints import read_grammar
from runners.core.prompt_limits import check_prompts
from runners.core.request_limits import RequestLimits

# The fields with texts: of completions, tokenize, embeddings, classification, rankings, responses and messages.
_TEXTS = ("prompt", "input", "query", *(name for side in SIDES for name in side), "suffix", "instructions", "system")
# The lists whose items cost time at each token.
_LISTS = (
    ("stop", "max_stop_strings", "stop strings"),
    ("bad_words", "max_stop_strings", "bad_words"),
    ("logit_bias", "max_logit_bias", "tokens in logit_bias"),
    ("stop_token_ids", "max_logit_bias", "stop_token_ids"),
)


_TOKEN_LIMITS = ("max_tokens_per_query", "max_tokens_per_doc")
_FIELDS = (
    *_TOKEN_LIMITS, *dict.fromkeys(_TEXTS), *(name for name, *_ in _LISTS),
    "model", "messages", "tools", "n", "chat_template_kwargs", "structured_outputs", "response_format", "text",
    "tool_prompt",
)  # fmt: skip
# The limited fields only, of any type: vLLM checks their types.
_decoder = make_fields_decoder(_FIELDS)


@dataclass(frozen=True, slots=True)
class CheckedBody:
    """What a checked body has.

    Attributes:
        characters: the number of characters of its texts.
        model: the name of the model.
        changes: the fields that vLLM understands, in place of those of Text Generation Inference.
        token_limits: the numbers of tokens to which texts of a ranking are truncated, by field; vLLM refuses more than
            the model takes, and Haystack's default is 4096.
    """

    characters: int = 0
    model: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    token_limits: Mapping[str, int] = field(default_factory=dict)


def check_forwarded(body: bytes, limits: RequestLimits) -> CheckedBody:
    """Check the body of a request that vLLM will answer.

    Raises:
        InputError: the body is no JSON object, or has a constraint that is too large.
        LimitExceededError: it has too many texts, messages, outputs, stop strings or tokens in a list.
    """
    call = decode_json(body, _decoder, limits)
    choices = call.n if isinstance(call.n, int) else 1
    characters = sum(_check_texts(name, getattr(call, name), choices, limits) for name in dict.fromkeys(_TEXTS))
    if isinstance(call.messages, list):
        check_messages(call.messages, limits)
        kwargs = call.chat_template_kwargs if isinstance(call.chat_template_kwargs, dict) else {}
        tools = call.tools if isinstance(call.tools, list) else None
        characters += check_prompts(limits, [Chat(call.messages, tools, kwargs)], choices)
    if isinstance(call.tools, list):
        check_tools(call.tools)
    for name, argument, what in _LISTS:
        if isinstance(value := getattr(call, name), list | dict):
            limits.check(argument, len(value), what, name)
    if call.tool_prompt is not None:
        # Text Generation Inference's, which vLLM would ignore.
        raise UnsupportedError("tool_prompt", "tool_prompt", on_vllm=False)
    changes = _read_grammar(call.response_format, call.structured_outputs)
    constraints = {name: getattr(call, name) for name in ("structured_outputs", "response_format", "text")} | changes
    for name, value in constraints.items():
        if isinstance(value, dict):
            check_constraint(value, name)
    limited = {name: getattr(call, name) for name in _TOKEN_LIMITS if isinstance(getattr(call, name), int)}
    return CheckedBody(characters, call.model if isinstance(call.model, str) else None, changes, limited)


def _read_grammar(response_format: Any, structured_outputs: Any) -> dict[str, Any]:
    """The fields with the constraint of Text Generation Inference's `response_format`, whose `value` vLLM ignores."""
    if not isinstance(response_format, dict):
        return {}
    kind, value = response_format.get("type"), response_format.get("value")
    if not isinstance(kind, str) or not is_grammar(kind, value):
        return {}
    if structured_outputs is not None:
        raise InputError("give one of response_format and structured_outputs", "structured_outputs")
    constraint = read_grammar(kind, value, "response_format")
    return {"response_format": None, "structured_outputs": {constraint.kind: constraint.value}}


def change_fields(body: bytes, changes: Mapping[str, Any]) -> bytes:
    """The body of an object, with other values for some fields."""
    # Of two fields of one name the last one counts, so a large body need not be decoded and encoded.
    fields = body.rstrip()[:-1].rstrip()
    comma = b"" if fields.endswith(b"{") else b","
    return b"".join((fields, comma, msgspec.json.encode(changes)[1:]))


def _check_texts(name: str, value: Any, choices: int, limits: RequestLimits) -> int:
    """Check the value of a field: a text, texts, token ids, lists of these, or objects with parts.

    Returns:
        The number of characters of all its texts.
    """
    if name == "input" and isinstance(value, list) and value and isinstance(value[0], dict):
        check_messages(value, limits, name)
        return check_prompts(limits, [Chat(value)])
    texts = [*_find_texts(value)]
    if name == "prompt":
        return check_prompts(limits, texts, choices)
    limits.check("max_client_batch_size", len(texts), f"texts in {name}", name)
    # One by one, because texts of embeddings and rankings have no outputs.
    characters = sum(check_prompts(limits, [text]) for text in texts)
    limits.check("max_request_characters", characters, f"characters in {name}", name)
    return characters


def _find_texts(value: Any) -> Iterator[str]:
    """All texts in the value of a field, at any depth; "" for each list of token ids."""
    match value:
        case str():
            yield value
        case [int(), *_]:
            yield ""
        case list():
            for item in value:
                yield from _find_texts(item)
        case dict():
            yield from _find_texts([value.get("content"), value.get("text")])
