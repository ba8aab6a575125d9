"""Request bodies: their type, their size, their JSON; and responses."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body_budget import BodyShare, count_kept, get_share
from protocol.http.errors import BodyTooLargeError, UnsupportedMediaTypeError
from protocol.http.json_pieces import encode_json, join_pieces
from protocol.http.json_structure import check_amounts, decode_in_pieces
from protocol.http.middleware.compression import inflate, read_encoding
from protocol.http.offload import offload, offload_large
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

T = TypeVar("T")

# curl sends the form type for any body unless told otherwise.
_JSON_TYPES = frozenset({"", "application/json", "application/x-www-form-urlencoded"})
_BINARY_TYPE = "application/octet-stream"
STRUCTURED_EVENT_TYPE = "application/cloudevents+json"
# More digits than any length has, and fewer than Python refuses to turn into a number.
MAX_DIGITS = 18
# Where msgspec names a field of the body: missing, or with a value that it cannot have.
_FIELD = re.compile(r"missing required field `(\w+)`$|`\$\.(\w+)")
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})
# As many parameters of a content type are looked at; none has more than three.
_MOST_PARAMETERS = 16
# Larger bodies would hold up the event loop for over a ms, and all threads for over 10 ms.
_INLINE_BYTES = 256 * 2**10
_ONE_CALL_BYTES = 4 * 2**20


class Body:
    """The bytes of a request's body, which are kept until they are decoded, and how many they are."""

    __slots__ = ("_share", "data", "size")

    def __init__(self, data: bytes, share: BodyShare | None = None) -> None:
        self.data = data
        self._share = share
        self.size = len(data)

    async def decode(self, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the bytes, in a thread if there are many; only what it makes is counted from then on."""
        data, self.data = self.data, b""
        value = await offload_large(lambda: read(data), self.size, _INLINE_BYTES)
        share = self._share
        # All requests that may be under way can keep smaller shares; only larger ones are worth the counting.
        if share is not None and share.taken > _INLINE_BYTES:
            share.give_back(but=await offload(lambda: count_kept(value)))
        return value

    async def check(self, read: Callable[[bytes], T]) -> T:
        """What `read` finds in bytes that go on to another application; all are counted until the request has ended."""
        return await offload_large(lambda: read(self.data), self.size, _INLINE_BYTES)


async def read_body(
    request: Request, limits: RequestLimits, allow_binary: bool = False, allow_event: bool = False
) -> Body:
    """Read a request's body.

    Raises:
        UnsupportedMediaTypeError: it is not JSON (or, where allowed, binary or an event), not UTF-8, or compressed
            otherwise than with gzip or deflate.
        BodyTooLargeError: it is larger, by its Content-Length, as it arrives or as it is decoded.
        BodiesTooLargeError: there is no room for it now, beside the bodies of other requests.
        InputError: it is empty, or not what its Content-Encoding says.
    """
    _check_type(request, [_BINARY_TYPE] * allow_binary + [STRUCTURED_EVENT_TYPE] * allow_event)
    encoding = read_encoding(request.headers.getlist("content-encoding"))
    limit = limits.max_request_bytes
    declared = request.headers.get("content-length")
    if declared is not None and (len(declared) > MAX_DIGITS or int(declared) > limit):
        raise BodyTooLargeError(f"the body has {declared[:MAX_DIGITS]} bytes; at most {limit} are allowed")
    share = get_share(request.scope)
    if share is not None and declared is not None:
        share.check(int(declared))
    chunks: list[bytes] = []
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes, which are allowed at most")
        chunks.append(chunk)
    body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    if body and encoding is not None:
        body = await inflate(body, encoding, limit, share)
    if not body:
        raise InputError("the body is empty; it must be a JSON object")
    return Body(body, share)


def _check_type(request: Request, others: Sequence[str]) -> None:
    """Check that the body is JSON or of one of the other types, in UTF-8."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    media_type = media_type.strip().lower()
    if media_type not in _JSON_TYPES and media_type not in others:
        allowed = " or ".join(["application/json", *others])
        raise UnsupportedMediaTypeError(f"the content type {media_type} is not supported; send {allowed}")
    for parameter in parameters.split(";", _MOST_PARAMETERS):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _UTF8:
            raise UnsupportedMediaTypeError(f"the charset {value.strip()} is not supported; send utf-8")


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T], limits: RequestLimits, what: str = "the body") -> T:
    """Decode JSON of a client into the decoder's type; no call into msgspec takes long.

    Raises:
        LimitExceededError: it has more values, containers or levels than the operator allows.
        InputError: as `parse_json`.
    """
    if len(body) <= _ONE_CALL_BYTES:
        check_amounts(body, limits)
        return parse_json(body, decoder, what)
    with _request_errors(what):
        value = decode_in_pieces(body, limits)
    converted: T = convert_json(value, decoder.type, what)
    return converted


def check_beside_texts(body: bytes, kept: object, limits: RequestLimits) -> None:
    """Check how much of a body, parameters or names, is kept with its texts until the answer.

    Raises:
        LimitExceededError: it is more than the longest text and all labels that a request may have.
    """
    if len(body) > limits.max_text_characters:
        labels = limits.max_labels * limits.max_label_characters
        count = max(count_kept(kept) - labels, 0)
        limits.check("max_text_characters", count, "characters of parameters and names, beside all labels,")


def parse_json(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Decode JSON into the decoder's type.

    Raises:
        InputError: it is no JSON or of another form; the message says where, and repeats none of it.
    """
    with _request_errors(what):
        return decoder.decode(body)


def convert_json(value: Any, form: type[T], what: str = "the body") -> T:
    """What was decoded already, as a type.

    Raises:
        InputError: it is of another form.
    """
    with _request_errors(what):
        return msgspec.convert(value, form)


@contextlib.contextmanager
def _request_errors(what: str) -> Iterator[None]:
    try:
        yield
    except msgspec.ValidationError as error:
        found = _FIELD.search(str(error))
        param = None if found is None else found[1] or found[2]
        raise InputError(f"{what} is not as expected: {error}", param) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{what} is not valid JSON: {error}") from error
    except RecursionError as error:
        raise InputError(f"{what} is nested too deeply") from error


def json_response(payload: Any, values: int = 0) -> Response:
    """A 200 with a JSON body; numpy arrays and iterators are JSON lists.

    Args:
        values: about how many numbers and names there are; of many only a part is encoded at a time.
    """
    return Response(encode_json(payload, values), media_type="application/json")


def encode_part(payload: Any) -> orjson.Fragment:
    """What is to be a part of an answer, encoded piece by piece."""
    return orjson.Fragment(join_pieces(payload))
