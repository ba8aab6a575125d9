"""Compression of bodies with gzip or deflate: of requests, and of answers for clients that accept it.

RFC 9110, sections 8.4 and 12.5.3: https://www.rfc-editor.org/rfc/rfc9110#section-8.4
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import islice

from starlette.types import Message, Scope, Send

from protocol.http.body_budget import BodyShare
from protocol.http.errors import BodyTooLargeError, UnsupportedEncodingError
from protocol.http.offload import offload
from runners.core.errors import InputError

# More bytes would block the event loop for over a ms.
_INLINE = 64 * 2**10
# Each member of a gzip file takes some 10 us, however small it is.
_MOST_MEMBERS = 2**14
# The pieces of _INLINE bytes in one step of the thread.
_STEP = 16
# The most characters of a header about codings; no client needs more.
_LONGEST = 2**10
# Shorter answers are not compressed.
SMALLEST = 2**10
_LEVEL = 1

# zlib's numbers of containers: 15 is zlib, 31 is gzip, a negative one is a bare stream.
_WINDOWS = {"gzip": 31, "deflate": 15}
_RAW = -15
_WEIGHT = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")

Header = tuple[bytes, bytes]


def read_encoding(values: Sequence[str]) -> str | None:
    """The coding in the values of Content-Encoding: `gzip`, `deflate`, or None for an uncompressed body.

    Raises:
        UnsupportedEncodingError: there is another coding, or several.
    """
    if sum(map(len, values)) > _LONGEST:
        raise UnsupportedEncodingError(f"{values[0][:_LONGEST]} ...", [*_WINDOWS])
    codings = [name for value in values for name in map(_coding, value.split(",")) if name not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in _WINDOWS:
        raise UnsupportedEncodingError(", ".join(codings), [*_WINDOWS])
    return codings[0]


async def inflate(body: bytes, encoding: str, limit: int, share: BodyShare | None = None) -> bytes:
    """Decompress a body, in a thread if it is large.

    Args:
        share: counts the decompressed bytes too.

    Raises:
        BodyTooLargeError: it has more than `limit` bytes; decompression stops soon after these.
        BodiesTooLargeError: the bodies of other requests leave no room for it now.
        InputError: it is corrupt or ends too early.
    """
    pieces = _inflate(body, encoding, limit, share)
    decoded = list(islice(pieces, 2))
    if len(decoded) < 2:
        return b"".join(decoded)
    # Other work may run between these steps.
    while step := await offload(lambda: list(islice(pieces, _STEP))):
        decoded += step
    return await offload(lambda: b"".join(decoded))


def _inflate(body: bytes, encoding: str, limit: int, share: BodyShare | None) -> Iterator[bytes]:
    """The decompressed body in small pieces."""
    window = _RAW if encoding == "deflate" and not _is_zlib(body) else _WINDOWS[encoding]
    rest = memoryview(body)
    size, members = 0, 1
    stream = zlib.decompressobj(window)
    while True:
        chunk = rest[:_INLINE]
        try:
            piece = stream.decompress(chunk, _INLINE)
        except zlib.error as error:
            raise InputError(f"the body is not valid {encoding}: {error}") from error
        rest = rest[len(chunk) - len(stream.unconsumed_tail) - len(stream.unused_data) :]
        size += len(piece)
        if size > limit:
            raise BodyTooLargeError(
                f"the body has more than {limit} bytes once it is decoded, which are allowed at most"
            )
        if share is not None:
            share.take(len(piece))
        yield piece
        if stream.eof:
            if not rest:
                return
            if encoding != "gzip":
                raise InputError(f"the body is not valid {encoding}: {len(rest)} bytes follow its end")
            # A gzip file may have several members: RFC 1952, section 2.2.
            members += 1
            if members > _MOST_MEMBERS:
                raise BodyTooLargeError(f"the body has more than {_MOST_MEMBERS} gzip members")
            stream = zlib.decompressobj(window)
        elif not chunk and not piece:
            raise InputError(f"the body is not valid {encoding}: it ends too early")


def _is_zlib(body: bytes) -> bool:
    """Whether a body of deflate has zlib's header; some clients send the bare stream (RFC 9110, 8.4.1.2)."""
    return body[0] & 0x0F == 8 and int.from_bytes(body[:2], "big") % 31 == 0


def compressing(scope: Scope, send: Send) -> Send:
    """`send`, which compresses answers over 1 KiB for clients that accept it, large ones in a thread.

    Streams stay as they are.
    """
    held: Message | None = None
    encoding: str | None = None
    parts: list[bytes] = []

    async def compress(message: Message) -> None:
        nonlocal held, encoding
        if message["type"] == "http.response.start" and _is_compressible(message.get("headers", ())):
            message = {**message, "headers": _with_vary(message["headers"])}
            encoding = choose_encoding(_accepted(scope["headers"]))
            if encoding is not None:
                held = message
                return
        elif held is not None and encoding is not None:
            parts.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(parts)
            deflated = await _deflate(body, encoding)
            if len(deflated) < len(body):
                held["headers"] = _encoded(held["headers"], encoding, len(deflated))
                body = deflated
            await send(held)
            message = {"type": "http.response.body", "body": body}
        await send(message)

    return compress


def _is_compressible(headers: Sequence[Header]) -> bool:
    """Whether an answer has a length of at least 1 KiB and is not compressed yet."""
    length = 0
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
        elif name == b"content-encoding" or (name == b"content-type" and value.startswith(b"text/event-stream")):
            return False
    return length >= SMALLEST


def _accepted(headers: Sequence[Header]) -> str:
    """The values of Accept-Encoding; empty if they are absurdly long."""
    accepted = ",".join(value.decode("latin-1") for name, value in headers if name == b"accept-encoding")
    return accepted if len(accepted) <= _LONGEST else ""


@lru_cache(maxsize=64)
def choose_encoding(accepted: str) -> str | None:
    """The preferred coding in an Accept-Encoding, gzip if both are equal; None if it prefers no compression."""
    weights: dict[str, float] = {}
    for item in accepted.split(","):
        name, *parameters = item.split(";")
        weights[_coding(name)] = _weight(parameters)
    rest = weights.get("*", 0.0)
    best = max(_WINDOWS, key=lambda coding: weights.get(coding, rest))
    weight = weights.get(best, rest)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _coding(name: str) -> str:
    name = name.strip().lower()
    return "gzip" if name == "x-gzip" else name


def _weight(parameters: Sequence[str]) -> float:
    """The q-value in a coding's parameters: 1 without one, 0 if it is no number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            return float(value) if _WEIGHT.fullmatch(value.strip()) else 0.0
    return 1.0


async def _deflate(body: bytes, encoding: str) -> bytes:
    if len(body) <= _INLINE:
        return zlib.compress(body, _LEVEL, _WINDOWS[encoding])
    stream = zlib.compressobj(_LEVEL, wbits=_WINDOWS[encoding])
    rest = memoryview(body)
    parts: list[bytes] = []
    while rest:
        parts.append(await offload(partial(stream.compress, rest[: _STEP * _INLINE])))
        rest = rest[_STEP * _INLINE :]
    return b"".join([*parts, stream.flush()])


def _encoded(headers: Sequence[Header], encoding: str, length: int) -> list[Header]:
    others = [header for header in headers if header[0] != b"content-length"]
    return [*others, (b"content-length", b"%d" % length), (b"content-encoding", encoding.encode())]


def _with_vary(headers: Sequence[Header]) -> list[Header]:
    """The headers, and `Vary` for caches: the answer depends on Accept-Encoding."""
    return [*headers, (b"vary", b"Accept-Encoding")]
