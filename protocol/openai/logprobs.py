"""Log probabilities as completions and chats have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from protocol.http.body import encode_part
from runners.core.generation import TokenLogprob, TokenLogprobs


def name_token(entry: TokenLogprob, as_id: bool) -> str:
    """A token's text; of one that is no whole characters its bytes, as OpenAI's API writes them.

    Args:
        as_id: whether its id stands for it, vLLM's `return_tokens_as_token_ids`.
    """
    if as_id:
        return f"token_id:{entry.token_id}"
    try:
        entry.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.data)
    return entry.text


def completion_logprobs(
    entries: Sequence[TokenLogprobs | str], as_ids: bool, prompt_length: int, prompt_entries: int
) -> dict[str, Any]:
    """The `logprobs` of a completion's choice.

    Args:
        entries: by position; of the first token of a prompt, which has no probability, only its name.
        prompt_length: characters before the output in the text.
        prompt_entries: how many of the entries are the prompt's.
    """
    tokens: list[str] = []
    logprobs: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    offsets: list[int] = []
    for position, entry in enumerate(entries):
        if isinstance(entry, str):
            tokens.append(entry)
            logprobs.append(None)
            tops.append(None)
            offsets.append(0)
            continue
        tokens.append(name_token(entry.chosen, as_ids))
        logprobs.append(entry.chosen.logprob)
        tops.append(_by_name((entry.chosen, *entry.top), as_ids))
        offsets.append(entry.offset if position < prompt_entries else prompt_length + entry.offset)
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}


def _by_name(entries: Iterable[TokenLogprob], as_ids: bool) -> dict[str, float]:
    """The tokens' probabilities by name; where two have the same text, the id is the later one's name."""
    found: dict[str, float] = {}
    for entry in {entry.token_id: entry for entry in entries}.values():
        name = name_token(entry, as_ids)
        found[f"token_id:{entry.token_id}" if name in found else name] = entry.logprob
    return found


def chat_logprobs(entries: Sequence[TokenLogprobs], as_ids: bool) -> dict[str, Any]:
    """The `logprobs` of a chat's choice."""
    content = encode_part(
        {**_chat_logprob(entry.chosen, as_ids), "top_logprobs": [_chat_logprob(top, as_ids) for top in entry.top]}
        for entry in entries
    )
    return {"content": content, "refusal": None}


def _chat_logprob(entry: TokenLogprob, as_ids: bool) -> dict[str, Any]:
    return {"token": name_token(entry, as_ids), "logprob": entry.logprob, "bytes": list(entry.data)}


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None] | None,
) -> orjson.Fragment | None:
    """vLLM's `prompt_logprobs`: by position the chosen token and the most likely ones, by id."""
    if entries is None:
        return None
    return encode_part(
        None if entry is None else {str(one.token_id): _prompt_logprob(one) for one in (entry.chosen, *entry.top)}
        for entry in entries
    )


def _prompt_logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.text}
