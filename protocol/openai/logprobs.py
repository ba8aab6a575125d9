"""Log probabilities in the forms of completions and chats."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from protocol.http.body import encode_part
from runners.core.generation import TokenLogprob, TokenLogprobs


def name_token(entry: TokenLogprob, as_id: bool) -> str:
    """A token's text, or its bytes in OpenAI's notation if they are no whole characters.

    Args:
        as_id: return the token's id instead, for vLLM's `return_tokens_as_token_ids`.
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
        entries: by position; the first token of a prompt, which has no log probability, as its name.
        prompt_length: number of characters before the output in the text.
        prompt_entries: number of entries of the prompt.
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
    """The log probabilities of tokens by name; the second token of the same text is named by its id."""
    by_name: dict[str, float] = {}
    for entry in {entry.token_id: entry for entry in entries}.values():
        name = name_token(entry, as_ids)
        by_name[f"token_id:{entry.token_id}" if name in by_name else name] = entry.logprob
    return by_name


def chat_logprobs(entries: Sequence[TokenLogprobs], as_ids: bool, with_chosen: bool = False) -> dict[str, Any]:
    """The `logprobs` of a chat's choice.

    Args:
        with_chosen: whether the top ones begin with the chosen token, as vLLM's do if the request names tokens.
    """
    content = encode_part(
        {
            **_chat_logprob(entry.chosen, as_ids),
            "top_logprobs": [_chat_logprob(top, as_ids) for top in _list_top(entry, with_chosen)],
        }
        for entry in entries
    )
    return {"content": content, "refusal": None}


def _list_top(entry: TokenLogprobs, with_chosen: bool) -> Sequence[TokenLogprob]:
    if not with_chosen:
        return entry.top
    return [entry.chosen, *(top for top in entry.top if top.token_id != entry.chosen.token_id)]


def _chat_logprob(entry: TokenLogprob, as_ids: bool) -> dict[str, Any]:
    return {"token": name_token(entry, as_ids), "logprob": entry.logprob, "bytes": list(entry.data)}


def prompt_logprobs(
    entries: Sequence[TokenLogprobs | None] | None,
) -> orjson.Fragment | None:
    """vLLM's `prompt_logprobs`: for each position, the prompt's token and the most likely ones, by id."""
    if entries is None:
        return None
    return encode_part(
        None if entry is None else {str(token.token_id): _prompt_logprob(token) for token in (entry.chosen, *entry.top)}
        for entry in entries
    )


def _prompt_logprob(entry: TokenLogprob) -> dict[str, Any]:
    return {"logprob": entry.logprob, "rank": entry.rank, "decoded_token": entry.text}
