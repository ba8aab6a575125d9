"""Texts truncated to a number of their own tokens, for the calls that limit each text by itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runners.core.runner import Runner
from runners.core.tokens import TokenizedPrompt, TokenizeOptions

_WITHOUT_SPECIAL = TokenizeOptions(add_special_tokens=False, details=True)


async def truncate_texts(runner: Runner, texts: Sequence[str], max_tokens: int) -> list[str]:
    """The texts without the tokens after the first `max_tokens` of each; neither special tokens nor a prompt's count.

    As vLLM does, the text is cut at the end of the last token that it keeps. Where the model takes no more tokens
    anyway, nothing is done.

    Args:
        max_tokens: how many tokens of a text are kept, at least 1.

    Raises:
        LimitExceededError: the texts that may have more tokens are too long or too many.
        OverloadedError: too many requests are under way.
    """
    truncated = [*texts]
    if max_tokens >= runner.max_length:
        return truncated
    # A token has at least one byte of its text.
    longer = [index for index, text in enumerate(texts) if len(text.encode("utf-8", "surrogatepass")) > max_tokens]
    if longer:
        tokenized = await runner.tokenize([texts[index] for index in longer], _WITHOUT_SPECIAL)
        for index, prompt in zip(longer, tokenized, strict=True):
            truncated[index] = _cut(texts[index], _find_offsets(texts[index], prompt), max_tokens)
    return truncated


def _find_offsets(text: str, tokenized: TokenizedPrompt) -> NDArray[np.int64]:
    """Start and end of each token of a text, in characters; those of a prompt before the text are left out."""
    assert tokenized.offsets is not None, "an encoder's tokenizer knows them"
    before = len(tokenized.text or "") - len(text)
    offsets = tokenized.offsets - before
    return offsets[offsets[:, 1] > 0].clip(min=0)


def _cut(text: str, offsets: NDArray[np.int64], max_tokens: int) -> str:
    if len(offsets) <= max_tokens:
        return text
    # A character may have several tokens; one that would lose some of them is removed.
    return text[: min(int(offsets[max_tokens - 1, 1]), int(offsets[max_tokens, 0]))]
