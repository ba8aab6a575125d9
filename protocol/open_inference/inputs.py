"""The inputs of the Open Inference Protocol: tensors of texts, pairs, words or token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from protocol.http.offload import give_way, offload_large
from protocol.output_tensors import TensorSpec
from protocol.service_paths import describe_service
from protocol.tensors import BYTES, Tensor
from runners.core.errors import InputError
from runners.core.predictions import TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner

INPUT = TensorSpec("input-0", BYTES, (-1,))
PAIRS = TensorSpec(INPUT.name, BYTES, (-1, 2))
_WORDS = "words"
_TOKENS = "input_ids"
TOKEN_INPUTS = (_TOKENS, "attention_mask", "token_type_ids")
_TOKEN_DATATYPES = ("INT32", "INT64")
# More elements are read in a thread, because that takes some ms.
_READ_INLINE = 2**14


async def read_input_tensors(
    runner: Runner, tensors: Sequence[Tensor], limits: RequestLimits
) -> tuple[Sequence[TextInput | TokenInput], int]:
    """The texts or tokens of a request, and the number of columns of its token tensors; 0 for texts.

    Raises:
        LimitExceededError: there are more than the operator allows.
        InputError: the tensors are not of texts, pairs, words or tokens.
    """
    elements = sum(len(tensor.flat) for tensor in tensors)
    return await offload_large(lambda: _make_inputs(runner, tensors, limits), elements, _READ_INLINE)


def _make_inputs(
    runner: Runner, tensors: Sequence[Tensor], limits: RequestLimits
) -> tuple[Sequence[TextInput | TokenInput], int]:
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise InputError("the request has two inputs of one name")
    for tensor in tensors[:1]:
        limits.check("max_client_batch_size", tensor.shape[0] if tensor.shape else 1, "texts", "inputs")
    if _TOKENS in by_name and by_name[_TOKENS].datatype != BYTES:
        limits.check("max_queue_tokens", len(by_name[_TOKENS].flat), "tokens of all texts", "inputs")
        return _read_tokens(by_name)
    if len(tensors) != 1:
        raise InputError(
            f"the request has {len(tensors)} inputs; it takes one tensor of texts, or {', '.join(TOKEN_INPUTS)}"
        )
    return _read_texts(runner, tensors[0]), 0


def _read_texts(runner: Runner, tensor: Tensor) -> list[TextInput]:
    """Read a tensor of texts: [N] or [N, 1] are texts, [N, 2] pairs, [] one text; `words` [N, W] are words of texts."""
    texts = tensor.flat
    if not isinstance(texts, list):
        raise InputError(
            f"input {tensor.name!r} is {tensor.datatype!r}; this model takes BYTES, or tokens as {_TOKENS}: "
            f"{describe_service(runner)}"
        )
    if not texts:
        raise InputError(f"input {tensor.name!r} is empty; give at least one text")
    match tensor.shape:
        case [_, count] if tensor.name == _WORDS:
            return [_read_words(texts[start : start + count]) for start in range(0, len(texts), count)]
        case [] | [_] | [_, 1]:
            return [TextInput(text) for text in texts]
        case [_, 2]:
            return [TextInput(text, pair) for text, pair in zip(texts[::2], texts[1::2], strict=True)]
    raise InputError(
        f"input {tensor.name!r} has the shape {tensor.shape}; this model takes [texts], [texts, 1] or, for pairs, "
        f"[texts, 2]; an input named {_WORDS} has [texts, words]"
    )


def _read_words(row: Sequence[str]) -> TextInput:
    """The words of a text, without the empty words that pad its row."""
    count = next((count for count in range(len(row), 0, -1) if row[count - 1]), 0)
    return TextInput(" ".join(row[:count]), words=tuple(row[:count]))


def _read_tokens(tensors: Mapping[str, Tensor]) -> tuple[list[TokenInput], int]:
    """Read tensors of token ids, [texts, tokens], padded on the right where attention_mask is 0."""
    if unknown := [name for name in tensors if name not in TOKEN_INPUTS]:
        raise InputError(f"there is no input {unknown[0]!r} beside {_TOKENS}; there are {', '.join(TOKEN_INPUTS)}")
    shape = tensors[_TOKENS].shape
    arrays: dict[str, NDArray[np.int64]] = {}
    for name, tensor in tensors.items():
        if tensor.datatype not in _TOKEN_DATATYPES:
            raise InputError(f"input {name!r} is {tensor.datatype!r}; it must be {' or '.join(_TOKEN_DATATYPES)}")
        if len(tensor.shape) != 2 or tensor.shape != shape:
            raise InputError(
                f"input {name!r} has the shape {tensor.shape}; it must be [texts, tokens] like that of {_TOKENS}"
            )
        give_way()
        arrays[name] = np.asarray(tensor.flat, dtype=np.int64).reshape(shape)
    texts, columns = shape
    if not texts or not columns:
        raise InputError(f"input {_TOKENS!r} is empty; give at least one text of one token")
    lengths = np.full(texts, columns)
    if (mask := arrays.get("attention_mask")) is not None:
        lengths = mask.sum(axis=1)
        padded_right = (mask == (np.arange(columns) < lengths[:, None])).all(axis=1) & (lengths > 0)
        if not padded_right.all():
            raise InputError(
                f"attention_mask of text {int(np.argmin(padded_right))} is not ones and then zeros: texts are to be "
                "padded on the right"
            )
    types = arrays.get("token_type_ids")
    return [
        TokenInput(ids[:length], None if types is None else types[row, :length])
        for row, (ids, length) in enumerate(zip(arrays[_TOKENS], lengths.tolist(), strict=True))
    ], columns
