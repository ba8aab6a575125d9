"""Finds the largest batch that a GPU has memory for, by running batches when a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from runners.core.device_thread import give_way
from runners.core.errors import ModelLoadError, brief
from runners.encoder.batch_mode import BatchMode
from runners.encoder.queue import MAX_BATCH_TEXTS
from runners.encoder.sequences import TokenizedText
from runners.modeling.device_failures import examine_failure, is_out_of_memory

logger = logging.getLogger(__name__)

# A model that has no memory for a batch of so few tokens is not served.
_LEAST_TOKENS = 128
# A text has this many tokens at least: special tokens, and one of its own.
_SHORTEST_TEXT = 8


def find_batch_tokens(run: Callable[[int], None], max_batch_tokens: int, name: str, device: torch.device) -> int:
    """The most tokens of a batch, halved until the batch runs.

    Args:
        run: runs a batch of so many tokens.
        max_batch_tokens: tried first.
        name: the model's.

    Raises:
        ModelLoadError: there is no memory for a small batch either.
        DeviceFailedError: the GPU has failed.
    """
    tokens = max_batch_tokens
    while (reason := _try_batch(run, tokens, device)) is not None:
        if tokens <= _LEAST_TOKENS:
            raise ModelLoadError(f"{name} has no memory for a batch of {tokens} tokens on {device}: {reason}")
        tokens = max(_LEAST_TOKENS, tokens // 2)
    if tokens < max_batch_tokens:
        logger.warning(
            "memory of %s runs out in a batch of more tokens: batches have at most %d tokens, not %d; set "
            "--max_batch_tokens=%d to start so", device, tokens, max_batch_tokens, tokens
        )  # fmt: skip
    return tokens


def _try_batch(run: Callable[[int], None], tokens: int, device: torch.device) -> str | None:
    """Why there is no memory for a batch; None if there is."""
    give_way()
    try:
        run(tokens)
    except Exception as error:
        examine_failure(error, device)
        if is_out_of_memory(error):
            return brief(error)
        # A model may refuse a text, and a batch that does not run does not say how much memory it takes.
        logger.debug("the largest batch was not tried: %s", brief(error))
    return None


def fill_batch(text: TokenizedText, tokens: int, mode: BatchMode) -> list[TokenizedText]:
    """A batch of so many tokens, as the queue makes it of texts like this one.

    Args:
        text: a long one, since attention takes more memory the longer a text is.
    """
    longest = cut_text(text, min(len(text.input_ids), tokens))
    count, rest = divmod(tokens, len(longest.input_ids))
    if mode is BatchMode.ONE_BY_ONE:
        count = 1
    texts = [longest] * min(count, MAX_BATCH_TEXTS)
    if mode is BatchMode.PACKED and rest >= _SHORTEST_TEXT and len(texts) < MAX_BATCH_TEXTS:
        texts.append(cut_text(text, rest))
    return texts


def cut_text(text: TokenizedText, tokens: int) -> TokenizedText:
    """A text without the tokens in its middle: special tokens are at its ends, and some models need those."""
    first = tokens - tokens // 2
    kept = np.r_[:first, len(text.input_ids) - tokens // 2 : len(text.input_ids)]
    return TokenizedText(text.input_ids[kept], text.token_type_ids[kept], None, truncated=True)
