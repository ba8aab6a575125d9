"""What a body may ask of vLLM's own layer, which bounds few amounts itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from protocol.body import decode_json
from protocol.openai.constraint_bounds import check_constraint, check_tools
from protocol.openai.messages import check_messages, count_characters
from runners.generator.admission import check_prompts
from runners.request_limits import RequestLimits

# Where routes have texts: completions and tokenize, embeddings, rankings, classification.
_TEXTS = ("prompt", "input", "documents", "text_1", "text_2", "queries", "query")


class _Body(msgspec.Struct):
    """The fields of which there may be much; what they must be is vLLM's to say."""

    prompt: Any = None
    input: Any = None
    documents: Any = None
    text_1: Any = None
    text_2: Any = None
    queries: Any = None
    query: Any = None
    messages: Any = None
    tools: Any = None
    tokens: Any = None
    n: Any = None
    stop: Any = None
    bad_words: Any = None
    stop_token_ids: Any = None
    logit_bias: Any = None
    chat_template_kwargs: Any = None
    structured_outputs: Any = None
    response_format: Any = None
    text: Any = None


_decoder = msgspec.json.Decoder(_Body)


def check_forwarded(body: bytes, limits: RequestLimits) -> None:
    """
    Args:
        body: of a request that vLLM will answer.

    Raises:
        InvalidRequestError: it is no JSON object, or has a constraint that is too large.
        LimitExceededError: it has too many texts, messages, outputs, or whatever costs something at each token.
    """
    call = decode_json(body, _decoder, limits)
    for name in _TEXTS:
        _check_texts(name, getattr(call, name), call.n if name == "prompt" else 1, limits)
    if isinstance(call.messages, list):
        check_messages(call.messages, limits)
        kwargs = call.chat_template_kwargs if isinstance(call.chat_template_kwargs, dict) else {}
        count_characters(limits, call.messages, call.tools if isinstance(call.tools, list) else None, kwargs)
        check_prompts(limits, [""], call.n if isinstance(call.n, int) else 1)
    if isinstance(call.tools, list):
        check_tools(call.tools)
    for name, argument in (
        ("stop", "max_stop_strings"),
        ("bad_words", "max_stop_strings"),
        ("logit_bias", "max_logit_bias"),
        ("stop_token_ids", "max_logit_bias"),
    ):
        if isinstance(value := getattr(call, name), list | dict):
            limits.check(argument, len(value), name, name)
    for name in ("structured_outputs", "response_format", "text"):
        if isinstance(value := getattr(call, name), dict):
            check_constraint(value, name)


def _check_texts(name: str, given: Any, n: Any, limits: RequestLimits) -> None:
    """Bound a text, or a list of texts, of token ids or of lists of these."""
    if isinstance(given, dict):
        # Rankings have documents as an object with parts.
        given = given.get("content")
    items: Sequence[Any] = given if isinstance(given, list) else [given]
    if len(items) and isinstance(items[0], int):
        items = [items]
    if name == "input" and len(items) and isinstance(items[0], dict):
        check_messages(items, limits, name)
        count_characters(limits, items)
        return
    limits.check("max_client_batch_size", len(items), name, name)
    texts = [item if isinstance(item, str) else "" for item in items]
    if name == "prompt":
        check_prompts(limits, texts, n if isinstance(n, int) else 1)
    else:
        # A text after the other, since those of embeddings and rankings are no outputs.
        for text in texts:
            check_prompts(limits, [text])
