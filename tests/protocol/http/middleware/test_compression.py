from __future__ import annotations

import gzip
import json
import os
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import tritonclient.http
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from protocol.http.errors import BodyTooLargeError, UnsupportedEncodingError
from protocol.http.middleware import compression
from protocol.http.middleware.compression import choose_encoding, compressing, inflate, read_encoding
from runners.core.errors import InputError
from tests.conftest import ModelFolder, Serve

PREDICT = "/v1/models/model:predict"
INFER = "/v2/models/model/infer"
TEXT = b"text " * 1000
BODY = json.dumps({"instances": ["a b", "c"]}).encode()
LIMIT = 20_000


# Without the time, so that the names of tests are the same in every process.
compress_gzip = partial(gzip.compress, mtime=0)


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_embedding"), max_request_bytes=LIMIT).client


@pytest.mark.parametrize(
    ("values", "encoding"),
    [
        ([], None), (["identity"], None), ([""], None), (["gzip"], "gzip"), (["X-GZIP"], "gzip"),
        (["deflate"], "deflate"), ([" gzip , identity"], "gzip"), (["identity", "gzip"], "gzip"),
    ],
)  # fmt: skip
def test_encodings_of_a_body(values: list[str], encoding: str | None) -> None:
    assert read_encoding(values) == encoding


@pytest.mark.parametrize("values", [["br"], ["zstd"], ["gzip, gzip"], ["gzip", "deflate"]])
def test_encodings_that_are_not_decoded(values: list[str]) -> None:
    with pytest.raises(UnsupportedEncodingError, match="is not supported; send gzip, deflate or the body as it is"):
        read_encoding(values)


@pytest.mark.parametrize(
    ("body", "encoding"),
    [
        (compress_gzip(TEXT), "gzip"),
        (compress_gzip(TEXT[:10]) + compress_gzip(TEXT[10:]), "gzip"),
        (compress_gzip(b"") + compress_gzip(TEXT), "gzip"),
        (zlib.compress(TEXT), "deflate"),
        (raw_deflate(TEXT), "deflate"),
    ],
)
async def test_inflate(body: bytes, encoding: str) -> None:
    assert await inflate(body, encoding, len(TEXT)) == TEXT


async def test_inflate_of_more_than_one_piece() -> None:
    data = os.urandom(300_000) + bytes(300_000)
    for encoding, compress in (("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", raw_deflate)):
        assert await inflate(compress(data), encoding, len(data)) == data


@pytest.mark.parametrize(
    ("body", "encoding", "error"),
    [
        (b"{}", "gzip", "the body is not valid gzip: Error -3 while decompressing data: incorrect header check"),
        (compress_gzip(TEXT)[:-9], "gzip", "the body is not valid gzip: it ends too early"),
        (compress_gzip(TEXT)[:-1], "gzip", "the body is not valid gzip: it ends too early"),
        (compress_gzip(TEXT)[:5], "gzip", "the body is not valid gzip: it ends too early"),
        (compress_gzip(TEXT)[:-8] + bytes(8), "gzip", "the body is not valid gzip: Error -3 while decompressing data: "),
        (compress_gzip(TEXT) + b"more", "gzip", "the body is not valid gzip: Error -3 while decompressing data: "),
        (zlib.compress(TEXT)[:-1], "deflate", "the body is not valid deflate: it ends too early"),
        (zlib.compress(TEXT) + b"more", "deflate", "the body is not valid deflate: 4 bytes follow its end"),
        (b"\xff" * 10, "deflate", "the body is not valid deflate: Error -3 while decompressing data: "),
        (b"x", "deflate", "the body is not valid deflate: it ends too early"),
    ],
)  # fmt: skip
async def test_corrupt_data(body: bytes, encoding: str, error: str) -> None:
    with pytest.raises(InputError) as raised:
        await inflate(body, encoding, 10_000)
    assert str(raised.value).startswith(error)


@pytest.mark.parametrize("limit", [1, 70_000, 2**20])
async def test_a_bomb_is_not_inflated(limit: int) -> None:
    bomb = gzip.compress(bytes(64 * 2**20))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError, match=f"more than {limit} bytes once it is decoded"):
            await inflate(bomb, "gzip", limit)
        assert tracemalloc.get_traced_memory()[1] < limit + 2**19
    finally:
        tracemalloc.stop()


async def test_a_bomb_of_empty_members_ends_soon() -> None:
    bomb = gzip.compress(b"") * 500_000
    started = time.process_time()
    with pytest.raises(BodyTooLargeError, match="the body has more than 16384 gzip members"):
        await inflate(bomb, "gzip", 2**20)
    assert time.process_time() - started < 2


async def test_large_bodies_do_not_hold_up_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    inflate_pieces = compression._inflate

    def watched(*arguments: Any) -> Any:
        for piece in inflate_pieces(*arguments):
            threads.add(threading.current_thread().name)
            yield piece

    monkeypatch.setattr(compression, "_inflate", watched)
    await inflate(gzip.compress(bytes(10_000)), "gzip", 10_000)
    assert threads == {threading.current_thread().name}
    threads.clear()
    await inflate(gzip.compress(bytes(10_000_000)), "gzip", 10_000_000)
    assert {name.partition("_")[0] for name in threads} == {threading.current_thread().name, "offload"}


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
def test_requests_over_v1(client: TestClient, encoding: str) -> None:
    compress: Any = {"deflate": zlib.compress, "identity": bytes}.get(encoding, gzip.compress)
    response = client.post(PREDICT, content=compress(BODY), headers={"content-encoding": encoding})
    assert response.status_code == 200
    assert response.json() == client.post(PREDICT, content=BODY).json()


@pytest.mark.parametrize(
    ("body", "encoding", "status", "error"),
    [
        (compress_gzip(b'{"instances": ["' + b"a" * LIMIT + b'"]}'), "gzip", 413,
         "the body has more than 20000 bytes once it is decoded, which are allowed at most"),
        (os.urandom(LIMIT + 1), "gzip", 413, "the body has 20001 bytes; at most 20000 are allowed"),
        (b"{}", "gzip", 400, "the body is not valid gzip: "),
        (compress_gzip(b""), "gzip", 400, "the body is empty; it must be a JSON object"),
        (b"", "gzip", 400, "the body is empty; it must be a JSON object"),
        (compress_gzip(b"{"), "gzip", 400, "the body is not valid JSON: Input data was truncated"),
        (BODY, "br", 415, "the content encoding br is not supported; send gzip, deflate or the body as it is"),
        (BODY, "gzip, br", 415, "the content encoding gzip, br is not supported; send gzip, deflate or the body as "),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_wrong_requests(client: TestClient, path: str, body: bytes, encoding: str, status: int, error: str) -> None:
    response = client.post(path, content=body, headers={"content-encoding": encoding})
    assert (response.status_code, set(response.json())) == (status, {"error"})
    assert response.json()["error"].startswith(error)
    assert response.headers.get("accept-encoding") == ("gzip, deflate" if status == 415 else None)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_binary_tensors(client: TestClient, encoding: str, compress: Any) -> None:
    """What tritonclient sends and reads: the length of the JSON part is that before compression, both ways."""
    tensor = tritonclient.http.InferInput("text", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([b"Hello", b"world " * 500], dtype=object))
    body, json_size = tritonclient.http.InferenceServerClient.generate_request_body(
        [tensor], outputs=[tritonclient.http.InferRequestedOutput("output-0")]
    )
    headers = {
        "inference-header-content-length": str(json_size),
        "content-encoding": encoding,
        "accept-encoding": encoding,
        "content-type": "application/octet-stream",
    }
    plain = client.post(INFER, content=body, headers=headers | {"content-encoding": "identity", "accept-encoding": ""})
    response = client.post(INFER, content=compress(body), headers=headers)
    assert response.status_code == plain.status_code == 200
    size = int(plain.headers["inference-header-content-length"])
    head, again = json.loads(plain.content[:size]), json.loads(response.content[:size])
    assert head | {"id": ""} == again | {"id": ""}
    assert response.headers["inference-header-content-length"] == str(size)
    assert response.content[size:] == plain.content[size:]


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ("", None), ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate, br", "gzip"), ("deflate, gzip", "gzip"),
        ("x-gzip", "gzip"), ("GZIP", "gzip"), ("br", None), ("*", "gzip"), ("identity", None), ("identity, gzip", "gzip"),
        ("gzip;q=0", None), ("gzip;q=0.0", None), ("gzip; q=0.000, *", "deflate"), ("gzip;q=0, deflate;q=0", None),
        ("gzip;q=0.5, deflate;q=0.6", "deflate"), ("gzip;q=0.5,deflate;Q=0.5", "gzip"), ("*;q=0", None),
        ("*;q=0.1", "gzip"), ("*;q=0, deflate", "deflate"), ("gzip;q=0.2, *;q=0.7", "deflate"),
        ("identity;q=1, gzip;q=0.5", None), ("identity;q=0.5, gzip;q=0.8", "gzip"), ("identity;q=0", None),
        ("gzip;q=nonsense", None), ("gzip;q=2", None), ("gzip;q=-1", None), ("gzip;q=", None), ("gzip;level=1", "gzip"),
        (",,gzip,", "gzip"), ("gzip;q=1.000", "gzip"),
    ],
)  # fmt: skip
def test_what_a_client_accepts(accepted: str, encoding: str | None) -> None:
    assert choose_encoding(accepted) == encoding


async def sized(request: Request) -> Response:
    body = b"a" * int(request.query_params["size"])
    return Response(body, media_type=request.query_params.get("type", "application/json"), headers={"vary": "Origin"})


async def streamed(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"a" * 2000

    return StreamingResponse(chunks(), media_type="text/event-stream")


async def piecewise(_: Request) -> Response:
    """A complete answer that comes in pieces, as it does behind Starlette's BaseHTTPMiddleware."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield b"a" * 2000

    return StreamingResponse(chunks(), media_type="application/json", headers={"content-length": "6000"})


async def encoded(_: Request) -> Response:
    return Response(gzip.compress(os.urandom(2000)), headers={"content-encoding": "gzip"})


async def incompressible(_: Request) -> Response:
    return Response(os.urandom(2000), media_type="application/octet-stream")


@pytest.fixture(scope="module")
def responses() -> TestClient:
    endpoints = (sized, streamed, piecewise, encoded, incompressible)
    routes = [Route(f"/{endpoint.__name__}", endpoint) for endpoint in endpoints]
    application = Starlette(routes=routes)

    async def compressed(scope: Scope, receive: Receive, send: Send) -> None:
        await application(scope, receive, compressing(scope, send))

    return TestClient(compressed)


@pytest.mark.parametrize(
    ("path", "accepted", "encoding", "varies"),
    [
        ("/sized?size=1023", "gzip", None, False),
        ("/sized?size=1024", "gzip", "gzip", True),
        ("/sized?size=5000", "deflate", "deflate", True),
        ("/sized?size=5000", "gzip;q=0", None, True),
        ("/sized?size=5000", "", None, True),
        ("/sized?size=200000", "gzip", "gzip", True),
        ("/sized?size=5000&type=text/event-stream", "gzip", None, False),
        ("/piecewise", "gzip", "gzip", True),
        ("/piecewise", "", None, True),
        ("/streamed", "gzip", None, False),
        ("/incompressible", "gzip", None, True),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_responses(
    responses: TestClient, method: str, path: str, accepted: str, encoding: str | None, varies: bool
) -> None:
    with responses.stream(method, path, headers={"accept-encoding": accepted}) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers.get("content-encoding") == encoding
    assert ("Accept-Encoding" in response.headers.get("vary", "")) == varies
    assert ("Origin" in response.headers.get("vary", "")) == path.startswith("/sized")
    if method == "GET" and encoding is not None:
        assert int(response.headers["content-length"]) == len(raw)
        assert zlib.decompress(raw, wbits=47).strip(b"a") == b""
    elif method == "GET" and path != "/incompressible":
        assert raw.strip(b"a") == b""
        assert "content-length" in response.headers or path == "/streamed"


def test_what_is_compressed_already_stays(responses: TestClient) -> None:
    response = responses.get("/encoded", headers={"accept-encoding": "gzip"})
    assert (response.headers["content-encoding"], len(response.content)) == ("gzip", 2000)


async def test_a_stream_is_not_held_back() -> None:
    """Each event goes on as it comes."""
    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    send = compressing({"type": "http", "headers": [(b"accept-encoding", b"gzip")]}, keep)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for position in range(3):
        await send({"type": "http.response.body", "body": b"a" * 2000, "more_body": True})
        assert len(sent) == position + 2
    await send({"type": "http.response.body", "body": b""})
    assert len(sent) == 5


def test_answers_of_the_application(client: TestClient) -> None:
    response = client.post(PREDICT, json={"instances": ["a b"] * 40}, headers={"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert len(response.json()["predictions"]) == 40
    assert "content-encoding" not in client.get("/v1/models", headers={"accept-encoding": "gzip"}).headers
