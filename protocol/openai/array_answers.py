"""Answers with an array of numbers for each text: embeddings, and vLLM's pooling."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from protocol.http.body import json_response
from protocol.http.rendering import render_off_loop
from protocol.openai.pooling_requests import InputFields
from protocol.openai.vector_bytes import ByteFormat, EmbedDtype, Endianness
from runners.core.errors import InputError

# Clients read lines of at most 64 KiB, and proxies fewer.
_LONGEST_HEADER = 2**15

Arrays = Sequence[NDArray[np.float32]]


class ArrayFields(InputFields, kw_only=True):
    """The fields about the form of arrays: `encoding_format` is OpenAI's with vLLM's values, the others are vLLM's."""

    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] | None = None
    embed_dtype: EmbedDtype | None = None
    endianness: Endianness | None = None

    @property
    def byte_format(self) -> ByteFormat:
        return ByteFormat(self.embed_dtype or "float32", self.endianness or "native")


async def answer_arrays(
    call: ArrayFields, head: Mapping[str, Any], arrays: Arrays, usage: Mapping[str, int], item: tuple[str, str]
) -> Response:
    """
    Args:
        head: the fields that the answer begins with.
        item: the `object` of an item, and the name of its field with the array.

    Raises:
        InputError: the header with the places of the arrays would be too long.
    """
    numbers = sum(array.size for array in arrays)

    def render() -> Response:
        if call.encoding_format in ("bytes", "bytes_only"):
            return _render_bytes(call, head, arrays, usage)
        kind, name = item
        data = ({"object": kind, "index": index, name: _encode(array, call)} for index, array in enumerate(arrays))
        return json_response({**head, "data": data, "usage": usage}, numbers)

    return await render_off_loop(render, numbers)


def _encode(array: NDArray[np.float32], call: ArrayFields) -> Any:
    if call.encoding_format == "base64":
        return base64.b64encode(call.byte_format.encode(array)).decode()
    # orjson reads contiguous arrays only.
    return np.ascontiguousarray(array)


def _render_bytes(call: ArrayFields, head: Mapping[str, Any], arrays: Arrays, usage: Mapping[str, int]) -> Response:
    """The arrays of all texts one after the other; vLLM's header `metadata` says where each is."""
    parts = [call.byte_format.encode(array) for array in arrays]
    headers = {}
    if call.encoding_format == "bytes":
        described = {**head, "data": [*_describe_parts(parts, arrays, call.byte_format)], "usage": usage}
        headers["metadata"] = metadata = json.dumps(described)
        if len(metadata) > _LONGEST_HEADER:
            raise InputError(
                f"the header metadata would have {len(metadata)} bytes; it may have {_LONGEST_HEADER}: send fewer "
                "texts, or set encoding_format to bytes_only",
                "encoding_format",
            )
    return Response(b"".join(parts), headers=headers, media_type="application/octet-stream")


def _describe_parts(parts: Sequence[bytes], arrays: Arrays, form: ByteFormat) -> Iterator[dict[str, Any]]:
    start = 0
    for index, (part, array) in enumerate(zip(parts, arrays, strict=True)):
        end = start + len(part)
        yield {
            "index": index, "embed_dtype": form.dtype, "endianness": form.endianness, "start": start, "end": end,
            "shape": array.shape,
        }  # fmt: skip
        start = end
