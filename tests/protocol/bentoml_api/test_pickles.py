"""Pickles of services of the same server: only on their own sockets, and of plain values only."""

from __future__ import annotations

import os
import pickle
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

from protocol.bentoml_api.pickles import PICKLE_TYPE, mark_private
from tests.protocol.bentoml_api.conftest import ServeMethod

HEADERS = {"content-type": PICKLE_TYPE}


class Program:
    """What runs when it is read from a pickle."""

    def __reduce__(self) -> Any:
        return os.system, ("echo",)


def serve_privately(method: str, serve_method: ServeMethod, **arguments: Any) -> tuple[TestClient, str]:
    served = serve_method(method, **arguments)
    return TestClient(mark_private(served.client.app), raise_server_exceptions=False), served.folder


def test_an_array(serve_method: ServeMethod) -> None:
    client, folder = serve_privately("embed", serve_method)
    # A proxy of BentoML's sends None for what the caller leaves out.
    body = {"texts": ["Hello world"], "model": None, "dimensions": None, "prompt_name": None, "truncation": None}
    answer = client.post("/bentoml/embed", content=pickle.dumps(body, protocol=5), headers=HEADERS)
    assert (answer.status_code, answer.headers["content-type"]) == (200, PICKLE_TYPE)
    vectors = pickle.loads(answer.content)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, SentenceTransformer(folder, device="cpu").encode(["Hello world"]), atol=1e-5)


def test_records_and_json(serve_method: ServeMethod) -> None:
    client, _ = serve_privately("fill_mask", serve_method)
    body = {"texts": ["[MASK] a", "b [MASK] [MASK]"], "top_k": 2}
    pickled = client.post("/bentoml/fill_mask", content=pickle.dumps(body), headers=HEADERS)
    assert pickle.loads(pickled.content) == client.post("/bentoml/fill_mask", json=body).json()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (pickle.dumps({"texts": [Program()]}), "the body is no pickle of plain values: UnpicklingError"),
        (pickle.dumps({"texts": np.array(["a"])}), "the body is no pickle of plain values: UnpicklingError"),
        (b"nothing", "the body is no pickle of plain values: UnpicklingError"),
        (b"", "the body is empty; it must be a JSON object"),
        (pickle.dumps(["texts"]), "the body is no pickle of arguments by name"),
        (pickle.dumps({1: 2}), "the call is not as expected: Expected `str` - at `key` in `$`"),
        (pickle.dumps({"texts": "a"}), "the call is not as expected: Expected `array`, got `str` - at `$.texts`"),
        (pickle.dumps({"texts": ["a"], "x": 1}), "the call is not as expected: Object contains unknown field `x`"),
    ],
)
def test_refusals(body: bytes, message: str, serve_method: ServeMethod) -> None:
    client, _ = serve_privately("embed", serve_method)
    answer = client.post("/bentoml/embed", content=body, headers=HEADERS)
    assert (answer.status_code, answer.json()) == (400, {"error": message})


def test_keys_and_limits_hold_here_too(serve_method: ServeMethod) -> None:
    client, _ = serve_privately("embed", serve_method, api_key="secret", max_request_bytes=100)
    body = pickle.dumps({"texts": ["a" * 100]})
    assert client.post("/bentoml/embed", content=body, headers=HEADERS).status_code == 401
    answer = client.post("/bentoml/embed", content=body, headers={**HEADERS, "authorization": "Bearer secret"})
    assert answer.status_code == 413
