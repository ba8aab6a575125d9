"""The tokens of texts and chats, as a model's tokenizer makes them, for the calls that ask for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.core.errors import InputError


@dataclass(frozen=True, slots=True)
class TokenizeOptions:
    """How prompts are tokenized, and what is said of their tokens.

    Attributes:
        add_special_tokens: None for the default: as in other requests of the model.
        prompt_name: the prompt of an embedder that is put in front of every text; None for its default prompt.
        details: whether to describe each token beside its id.
    """

    add_special_tokens: bool | None = None
    prompt_name: str | None = None
    details: bool = False


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The tokens of a prompt, all of them: it is not truncated. All but `ids` need `TokenizeOptions.details`.

    Attributes:
        text: what was tokenized, a model's prompt included; None for a chat.
        strings: the tokens as the vocabulary writes them; "" for ids without a token.
        special: True for special tokens; of an encoder for those that the tokenizer has added.
        offsets: int64 [tokens, 2], start and end of each token in `text`, in characters; (0, 0) for tokens that the
            tokenizer has added. None where they are not known: a generator's.
    """

    ids: Sequence[int]
    text: str | None = None
    strings: Sequence[str] = ()
    special: Sequence[bool] = ()
    offsets: NDArray[np.int64] | None = None


DEFAULT_TOKENIZE_OPTIONS = TokenizeOptions()


def check_token_ids(ids: Sequence[int], vocabulary: int) -> None:
    """
    Args:
        vocabulary: number of token ids.

    Raises:
        InputError: a token id is outside of the vocabulary.
    """
    for token in ids:
        if not 0 <= token < vocabulary:
            raise InputError(f"there is no token {token}: the vocabulary ends at {vocabulary - 1}", "tokens")
