"""The bodies of requests, checked and decoded, and JSON responses."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypeForm

from protocol.http.body_budget import BodyShare, count_kept, get_share
from protocol.http.errors import BodyTooLargeError, UnsupportedMediaTypeError
from protocol.http.headers import first_headers
from protocol.http.json_pieces import encode_json, join_pieces
from protocol.http.json_structure import check_json_amounts, decode_in_pieces
from protocol.http.middleware.compression import inflate, read_encoding
from protocol.http.offload import offload, offload_large
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

T = TypeVar("T")

_USUAL_TYPE = b"application/json"
# By default curl sends the type of a form.
_JSON_TYPES = frozenset({"", "application/json", "application/x-www-form-urlencoded"})
FORM_TYPE = "multipart/form-data"
# More digits than any length has; Python refuses to parse a number of some thousands.
MAX_DIGITS = 18
# The place in a request's scope of a body that has been read, and that its endpoint has not taken yet.
_READ = "runtime.body"
# The field of the body in msgspec's message about a missing field or a wrong value.
_FIELD = re.compile(r"missing required field `(\w+)`$|`\$\.(\w+)")
_UTF8 = frozenset({"utf-8", "utf8", "us-ascii"})
# Parameters of a content type that are read; real ones have at most three.
_MOST_PARAMETERS = 16
# Decoding a larger body would block the event loop for over a ms, or all threads for over 10 ms.
_INLINE_BYTES = 256 * 2**10
_ONE_CALL_BYTES = 4 * 2**20


class NotJsonError(InputError):
    """The body is no JSON."""


class Body:
    """A request's body: its bytes until they are decoded, and their number."""

    __slots__ = ("_share", "data", "size")

    def __init__(self, data: bytes, share: BodyShare | None = None) -> None:
        self.data = data
        self._share = share
        self.size = len(data)

    async def decode(self, read: Callable[[bytes], T]) -> T:
        """Decode the bytes with `read`, in a thread if there are many; from then on only the result counts as held."""
        data, self.data = self.data, b""
        value = await offload_large(lambda: read(data), self.size, _INLINE_BYTES)
        share = self._share
        # Small shares of all requests together fit into memory, so they are not counted again.
        if share is not None and share.taken > _INLINE_BYTES:
            share.give_back(kept=await offload(lambda: count_kept(value)))
        return value

    async def check(self, read: Callable[[bytes], T]) -> T:
        """Check the bytes with `read`, and keep them for another application until the request ends."""
        return await offload_large(lambda: read(self.data), self.size, _INLINE_BYTES)


async def read_body(
    request: Request,
    limits: RequestLimits,
    more_types: Sequence[str] = (),
    allow_empty: bool = False,
) -> Body:
    """Read a request's body, or take the one that has been handed on.

    Args:
        more_types: the content types that it may have beside JSON's.

    Raises:
        UnsupportedMediaTypeError: it is of another type, not UTF-8, or compressed otherwise than with gzip or deflate.
        BodyTooLargeError: its Content-Length, its bytes or its decoded bytes exceed the limit.
        BodiesTooLargeError: the bodies of other requests leave no room for it now.
        InputError: it is empty, or its Content-Encoding is wrong.
        ClientDisconnect: the client has disconnected before it sent all of it.
    """
    handed: Body | None = request.scope.pop(_READ, None)
    if handed is not None:
        return handed
    headers = first_headers(request.scope)
    if headers.get(b"content-type") != _USUAL_TYPE:
        _check_type(request, more_types)
    encoding = None
    if b"content-encoding" in headers:
        encoding = read_encoding(request.headers.getlist("content-encoding"))
    limit = limits.max_request_bytes
    declared = headers.get(b"content-length")
    if declared is not None and (len(declared) > MAX_DIGITS or int(declared) > limit):
        count = declared[:MAX_DIGITS].decode("latin-1")
        raise BodyTooLargeError(f"the body has {count} bytes; at most {limit} are allowed")
    share = get_share(request.scope)
    if share is not None and declared is not None:
        share.check(int(declared))
    body = await _receive(request, limit, share)
    if body and encoding is not None:
        body = await inflate(body, encoding, limit, share)
    if not body and not allow_empty:
        raise NotJsonError("the body is empty; it must be a JSON object")
    return Body(body, share)


async def _receive(request: Request, limit: int, share: BodyShare | None) -> bytes:
    chunks: list[bytes] = []
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise BodyTooLargeError(f"the body has more than {limit} bytes, which are allowed at most")
        if share is not None:
            share.take(len(chunk))
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def hand_on(request: Request, body: Body) -> None:
    """Let the next `read_body` of a request return a body that has been read and not decoded."""
    request.scope[_READ] = body


def is_form(request: Request) -> bool:
    """Whether the body is a form with files, by its type."""
    return read_media_type(request) == FORM_TYPE


def is_json(request: Request) -> bool:
    """Whether the body is JSON, by its type."""
    return read_media_type(request) in _JSON_TYPES


def read_media_type(request: Request) -> str:
    """The type of the body in lower case, without its parameters; empty if the request names none."""
    return _split_type(request)[0]


def _split_type(request: Request) -> tuple[str, str]:
    """The type of the body, and the type's parameters."""
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    return media_type.strip().lower(), parameters


def _check_type(request: Request, others: Sequence[str]) -> None:
    """Check that the body is JSON or of one of the other types, in UTF-8."""
    media_type, parameters = _split_type(request)
    if media_type not in _JSON_TYPES and media_type not in others:
        allowed = " or ".join(["application/json", *others])
        raise UnsupportedMediaTypeError(f"the content type {media_type} is not supported; send {allowed}")
    for parameter in parameters.split(";", _MOST_PARAMETERS):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset" and value.strip().strip('"').lower() not in _UTF8:
            raise UnsupportedMediaTypeError(f"the charset {value.strip()} is not supported; send utf-8")


def decode_json(body: bytes, decoder: msgspec.json.Decoder[T], limits: RequestLimits, what: str = "the body") -> T:
    """Decode a client's JSON into the decoder's type, without a long call into msgspec.

    Raises:
        LimitExceededError: it has more values, containers or levels than the operator allows.
        InputError: as `parse_json`.
    """
    if len(body) <= _ONE_CALL_BYTES:
        check_json_amounts(body, limits)
        return parse_json(body, decoder, what)
    try:
        value = decode_in_pieces(body, limits)
    except _DECODING_ERRORS as error:
        raise _describe_error(what, error) from error
    return convert_json(value, decoder.type, what)


def make_fields_decoder(names: Iterable[str]) -> msgspec.json.Decoder[Any]:
    """A decoder of the fields of an object that have these names, of any type; a missing one is None."""
    return msgspec.json.Decoder(msgspec.defstruct("_Fields", [(name, Any, None) for name in names]))


def check_kept_parameters(body: bytes, kept: object, limits: RequestLimits) -> None:
    """Check the size of the parameters and names in a body, which stay in memory until the request is answered.

    Raises:
        LimitExceededError: they have more characters than the longest allowed text and all allowed labels together.
    """
    if len(body) > limits.max_text_characters:
        labels = limits.max_labels * limits.max_label_characters
        count = max(count_kept(kept) - labels, 0)
        limits.check("max_text_characters", count, "characters of parameters and names, beside all labels,")


def parse_json(body: bytes, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """Decode JSON into the decoder's type.

    Raises:
        InputError: it is no JSON, or of another type; the message says where, and repeats none of the body.
    """
    try:
        return decoder.decode(body)
    except _DECODING_ERRORS as error:
        raise _describe_error(what, error) from error


def convert_json(value: Any, form: TypeForm[T], what: str = "the body") -> T:
    """Convert a decoded value to a type.

    Raises:
        InputError: the value is not of that type.
    """
    try:
        converted: T = msgspec.convert(value, form)
    except _DECODING_ERRORS as error:
        raise _describe_error(what, error) from error
    return converted


_DECODING_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _describe_error(what: str, error: Exception) -> InputError:
    match error:
        case msgspec.ValidationError():
            found = _FIELD.search(str(error))
            param = None if found is None else found[1] or found[2]
            return InputError(f"{what} is not as expected: {error}", param)
        case RecursionError():
            return InputError(f"{what} is nested too deeply")
    return NotJsonError(f"{what} is not valid JSON: {error}")


def json_response(payload: Any, values: int = 0) -> Response:
    """A 200 with a JSON body; numpy arrays and iterators are JSON lists.

    Args:
        values: about how many numbers and names the body has; many are encoded in parts.
    """
    return Response(encode_json(payload, values), media_type="application/json")


def encode_part(payload: Any) -> orjson.Fragment:
    """Encode a part of an answer, piece by piece."""
    return orjson.Fragment(join_pieces(payload))
