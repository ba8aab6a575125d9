"""`/tokenize` and `/decode`: the tokens of texts, and the texts of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body, json_response
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import CHARACTERS_A_NUMBER, render_off_loop
from protocol.refused_parameters import RefusingDecoder
from protocol.tei.parameters import REFUSED
from runners.core.errors import EmptyInputError, InputError
from runners.core.number_types import TokenId
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.tokens import TokenizedPrompt, TokenizeOptions

# The values of a token in the answer, each of which takes as long as some numbers to render.
_NUMBERS_PER_TOKEN = 10


class TeiTokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of `/tokenize`. `inputs` is a text or texts."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class TeiDecodeRequest(msgspec.Struct, kw_only=True):
    """The body of `/decode`. `ids` are the token ids of a text, or of texts."""

    ids: list[TokenId | list[TokenId]]
    skip_special_tokens: bool = True


_tokenize_decoder = RefusingDecoder(TeiTokenizeRequest, REFUSED["/tokenize"])
_decode_decoder = RefusingDecoder(TeiDecodeRequest, REFUSED["/decode"])


async def answer_tokenize(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the tokens of each text; they are not truncated."""
    call = await _tokenize_decoder.read(body, limits)
    texts = [call.inputs] if isinstance(call.inputs, str) else call.inputs
    if not all(texts) or not texts:
        raise EmptyInputError("inputs is empty, or has an empty text; give at least a character")
    options = TokenizeOptions(call.add_special_tokens, call.prompt_name, details=True)
    tokenized = await until_disconnect(request, runner.tokenize(texts, options))
    numbers = _NUMBERS_PER_TOKEN * sum(len(each.ids) for each in tokenized)
    return await render_off_loop(lambda: json_response(map(_list_tokens, tokenized), numbers), numbers)


async def answer_decode(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the text of each sequence of token ids."""

    def read(data: bytes) -> tuple[TeiDecodeRequest, list[list[int]]]:
        call = _decode_decoder.decode(data, limits)
        return call, _read_sequences(call.ids)

    call, sequences = await body.decode(read)
    texts = await until_disconnect(request, runner.detokenize(sequences, call.skip_special_tokens))
    numbers = sum(map(len, texts)) // CHARACTERS_A_NUMBER
    return await render_off_loop(lambda: json_response(texts, numbers), numbers)


def _read_sequences(ids: Sequence[int | list[int]]) -> list[list[int]]:
    """
    Raises:
        InputError: there is no token, or there are both tokens and lists of tokens.
    """
    sequences = [each for each in ids if isinstance(each, list)]
    tokens = [each for each in ids if isinstance(each, int)]
    if sequences and tokens:
        raise InputError("ids has both token ids and lists of them; give one list, or a list for each text")
    found = [tokens] if tokens else sequences
    if not found or not all(found):
        raise EmptyInputError("ids is empty, or has an empty list; give at least a token")
    return found


def _list_tokens(tokenized: TokenizedPrompt) -> Iterator[dict[str, Any]]:
    """The tokens of a text. As in that server, places are bytes of UTF-8, and special tokens have none."""
    text = tokenized.text or ""
    if tokenized.offsets is None:
        spans: Sequence[Sequence[int] | None] = [None] * len(tokenized.ids)
        pieces: Sequence[str] = tokenized.strings
    else:
        spans = _to_bytes(text, tokenized.offsets).tolist()
        pieces = [text[start:end] for start, end in tokenized.offsets.tolist()]
    for token, string, special, span, piece in zip(
        tokenized.ids, tokenized.strings, tokenized.special, spans, pieces, strict=True
    ):
        start, stop = (None, None) if special or span is None else span
        shown = string if special else piece
        yield {"id": token, "text": shown, "special": special, "start": start, "stop": stop}


def _to_bytes(text: str, offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of characters as places of bytes of UTF-8: int64 [tokens, 2]."""
    if text.isascii():
        return offsets
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    sizes = 1 + (codes >= 0x80) + (codes >= 0x800) + (codes >= 0x10000)
    return np.asarray(np.concatenate([[0], np.cumsum(sizes)])[offsets])
