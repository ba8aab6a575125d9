"""Texts and token ids of JSON bodies, as OpenAI's API and Text Embeddings Inference take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from runners.core.errors import EmptyInputError, InputError
from runners.core.number_types import TokenId
from runners.core.predictions import TextInput, TokenInput
from runners.core.request_limits import RequestLimits

# A text, a list of texts, the ids of a tokenized text, or a list of those.
Inputs = str | list[TokenId | str | list[TokenId]]

_FORMS = "must be a text, token ids, or a list of either, and not empty"


def read_text_inputs(value: Inputs, name: str, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
    """The inputs in the value of a body's field.

    Args:
        name: the field's name, for errors.

    Raises:
        LimitExceededError: there are more texts than the operator allows.
        EmptyInputError: the value is empty, or has an empty text.
        InputError: it has both texts and token ids.
    """
    items = [value] if isinstance(value, str) else value
    if items == []:
        raise EmptyInputError(f"{name} {_FORMS}", name)
    kinds = {type(item) for item in items}
    if kinds == {int}:
        return [_tokens(items)]
    limits.check("max_client_batch_size", len(items), "texts", name)
    for position, item in enumerate(items):
        if item == "" or item == []:
            where = "" if isinstance(value, str) else f"[{position}]"
            raise EmptyInputError(f"{name}{where} is empty; give at least a character or a token", name)
    match [*kinds]:
        case [kind] if kind is str:
            return [TextInput(text) for text in items if isinstance(text, str)]
        case [kind] if kind is list:
            return [_tokens(ids) for ids in items if isinstance(ids, list)]
    raise InputError(f"{name} {_FORMS}", name)


def _tokens(ids: Sequence[Any]) -> TokenInput:
    return TokenInput(np.array(ids, dtype=np.int64))
