"""OpenAI's embeddings, for models on this server's own engine; vLLM answers for a model on vLLM.

https://platform.openai.com/docs/api-reference/embeddings
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.responses import Response

from protocol.http.body import Body, decode_json
from protocol.http.rendering import render
from protocol.model_selection import SelectModel, name_in_answer
from protocol.text_inputs import Inputs, read_text_inputs
from protocol.vectors import list_vectors
from runners.core.errors import InputError
from runners.core.predictions import Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options

# vLLM's truncate_prompt_tokens for the length that the model takes.
_MODEL_LENGTH = -1


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """The body of `embeddings`. `prompt_name` selects a prompt of the model, as in sentence-transformers."""

    input: Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None
    prompt_name: str | None = None
    user: str | None = None
    # This field is read so that it can be refused: ignoring it would change the vectors.
    truncate_prompt_tokens: int | None = None


_decoder = msgspec.json.Decoder(EmbeddingRequest)


async def answer_embeddings(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `embeddings` with a vector for every text.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot embed a text.
    """

    def read(data: bytes) -> tuple[EmbeddingRequest, Sequence[TextInput | TokenInput]]:
        call = decode_json(data, _decoder, limits)
        return call, read_text_inputs(call.input, "input", limits)

    call, inputs = await body.decode(read)
    runner = select(call.model)
    refuse_truncation(call.truncate_prompt_tokens)
    fields = {"dimensions": call.dimensions, "prompt_name": call.prompt_name}
    options = resolve_options(runner, {name: value for name, value in fields.items() if value is not None}, limits)
    predictions = await runner.infer(inputs, options)
    return await render(lambda answers: _render(answers, call, name_in_answer(runner, call.model)), predictions)


def refuse_truncation(tokens: int | None) -> None:
    """
    Raises:
        InputError: vLLM's `truncate_prompt_tokens` asks for another length than the model's.
    """
    if tokens not in (None, _MODEL_LENGTH):
        raise InputError(
            "truncate_prompt_tokens can only be -1: texts are truncated to the model's length", "truncate_prompt_tokens"
        )


def _render(predictions: Sequence[Prediction], call: EmbeddingRequest, model: str) -> dict[str, Any]:
    data = (
        {"object": "embedding", "index": index, "embedding": _encode(vector, call.encoding_format)}
        for index, vector in enumerate(list_vectors(predictions))
    )
    return {"object": "list", "data": data, "model": model, "usage": count_input_usage(predictions)}


def count_input_usage(predictions: Sequence[Prediction]) -> dict[str, int]:
    """The `usage` of a request that generates nothing."""
    tokens = sum(prediction.tokens for prediction in predictions)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _encode(vector: NDArray[np.float32], encoding_format: str | None) -> Any:
    if encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    # orjson reads contiguous arrays only.
    return np.ascontiguousarray(vector)
