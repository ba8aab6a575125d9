"""Requests over HTTP: right ones of every route, and wrong ones, with how often each is sent."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.texts import docstrings
from tests.attack.seeds import SEEDS, Seed
from tests.soak.answers import Answers, read_first_prediction, read_json, read_plain, read_stream, read_tensors
from tests.soak.servers import GENERATION, MOST_BYTES, SPARE

# It stands for the number of the request: what is sent but once must not be kept.
NUMBER = b"@@@@@@@@"
_OK = frozenset({200})
# Of how many texts there are requests, and of how many a large one is.
_TEXTS = 40
_LARGE = 100
# Above it the server reads a body in a thread: bytes.
_INLINE_BYTES = 2**18
_READ_TENSORS = '"binary_data_output": true'
_JSON = {"content-type": "application/json"}
# Weights of kinds: a wrong one is cheap, generation and large bodies are not.
_OFTEN, _USUAL, _SELDOM, _RARE = 8.0, 2.0, 0.5, 0.05
_TEI_PATHS = ("/embed", "/embed_all", "/embed_sparse", "/similarity", "/predict", "/rerank", "/tokenize", "/decode")
_STREAMS = ("/generate_stream",)
# Their answers are plain texts.
_TEXT_PATHS = ("/bentoml/generate", "/bentoml/chat")


@dataclass(frozen=True)
class HttpRequest:
    """A request and what its answer must be.

    Attributes:
        kind: what its latency is counted under.
        data: its bytes.
        weight: how often it is sent, beside others.
        statuses: those that its answer may have.
        answers: what the answer is compared with; one of 503 is not.
        closes: whether the connection is of no use after it, since its body is not complete.
    """

    kind: str
    data: bytes
    weight: float
    statuses: frozenset[int] = _OK
    answers: Answers = field(default_factory=lambda: Answers(read_json))
    closes: bool = False


def render(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a request, whose id is its number."""
    fields = {"host": "localhost", "x-request-id": NUMBER.decode(), **(_JSON if body else {}), **(headers or {})}
    if method == "POST" and "transfer-encoding" not in fields:
        fields.setdefault("content-length", str(len(body)))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def make_requests() -> list[HttpRequest]:
    """All requests over HTTP."""
    return [*_from_seeds(), *_of_texts(), *_numbered(), *_large(), *_spare(), *_of_server(), *_wrong()]


def large_request() -> HttpRequest:
    """One that is read in a thread."""
    return next(_large())


def streaming_request(tokens: int) -> bytes:
    """A chat that is streamed, of so many tokens."""
    return render("POST", "/v1/chat/completions", _dump(_chat("Tell me more.", tokens, stream=True)))


def _dump(body: Any) -> bytes:
    return json.dumps(body).encode()


def _from_seeds() -> Iterator[HttpRequest]:
    """Those of tests/attack, without sampling."""
    for task, seeds in SEEDS.items():
        for seed in seeds:
            body = json.dumps(seed.body)
            # The logits of a vocabulary are a megabyte.
            if seed.path.startswith("/v2/repository/models") or '"logits"' in body:
                continue
            # The two that are asked most have the largest batches.
            weight = _OFTEN if task in ("text_embedding", "sequence_classification") else _USUAL
            weight = _RARE if "json_schema" in body or len(body) > 1000 else weight / len(seeds)
            headers = {"content-type": "application/cloudevents+json"} if "specversion" in body else {}
            data = render("POST", _name_model(seed, task), _name_body(seed, task), headers)
            # Some tasks take no single texts.
            statuses = frozenset({200, 400})
            yield HttpRequest(
                f"{_name_protocol(seed)} {task}", data, weight, statuses, Answers(_find_reader(seed, body))
            )


def _name_protocol(seed: Seed) -> str:
    streams = " stream" if _is_stream(seed) else ""
    if _is_hubs(seed):
        return f"huggingface{streams}"
    if seed.path.startswith("/v2/repository"):
        return "repository"
    if "/models/" in seed.path:
        return "v1" if seed.path.startswith("/v1") else f"v2{streams}"
    if seed.path.startswith("/bentoml/"):
        return "bentoml"
    return "tei" if _is_teis(seed) else f"openai{streams}"


def _is_teis(seed: Seed) -> bool:
    # vLLM has a path of this name too.
    return seed.path in _TEI_PATHS and (seed.path != "/tokenize" or "inputs" in seed.body)


def _is_hubs(seed: Seed) -> bool:
    return seed.path == "/" or seed.path.startswith("/models/")


def _is_stream(seed: Seed) -> bool:
    return seed.path.endswith(_STREAMS) or (isinstance(seed.body, dict) and bool(seed.body.get("stream")))


def _name_model(seed: Seed, task: str) -> str:
    path = seed.path.replace("/models/model", f"/models/{task}")
    return f"{path}?model={task}" if _is_teis(seed) or path == "/" else path


def _name_body(seed: Seed, task: str) -> bytes:
    """The body with the model's name, and greedy, as those of Hugging Face's API are."""
    if _is_hubs(seed):
        return _dump(seed.body)
    body = dict(seed.body)
    if "/models/" not in seed.path and seed.path != "/v2/repository/index" and not _is_teis(seed):
        body["model"] = task
    if task == GENERATION and "tokenize" not in seed.path:
        if "/models/" in seed.path:
            body["parameters"] = {**body.get("parameters", {}), "temperature": 0}
        else:
            body["temperature"] = 0
    return _dump(body)


def _find_reader(seed: Seed, body: str) -> Callable[[bytes], Any]:
    if seed.path == "/v2/repository/index":
        # The spare model comes and goes.
        return lambda answer: [each["name"] for each in json.loads(answer) if each["name"] != SPARE]
    if _is_stream(seed):
        return read_stream
    if seed.path in _TEXT_PATHS:
        return read_plain
    return read_tensors if _READ_TENSORS in body else read_json


def _of_texts() -> Iterator[HttpRequest]:
    """Real texts of different lengths, for the tasks that answer any text."""
    for text in docstrings()[:_TEXTS]:
        yield _predict("v1 text_embedding", "text_embedding", [text], _OFTEN / _TEXTS)
        yield _predict("v1 sequence_classification", "sequence_classification", [text], _OFTEN / _TEXTS)
        yield _predict("v1 token_classification", "token_classification", [text], _SELDOM / _TEXTS)
        body = {"question": text[:40], "context": text}
        yield _predict("v1 question_answering", "question_answering", [body], _SELDOM / _TEXTS)
        chat = render("POST", "/v1/chat/completions", _dump(_chat(text[:60], 4)))
        yield HttpRequest("openai chat", chat, _SELDOM / _TEXTS)
        stream = render("POST", "/v1/chat/completions", _dump(_chat(text[:60], 4, stream=True)))
        yield HttpRequest("openai chat stream", stream, _SELDOM / _TEXTS, answers=Answers(read_stream))


def _predict(kind: str, model: str, instances: Sequence[Any], weight: float, **headers: str) -> HttpRequest:
    body = _dump({"instances": instances})
    return HttpRequest(kind, render("POST", f"/v1/models/{model}:predict", body, headers), weight)


def _chat(text: str, tokens: int, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {
        "model": GENERATION, "messages": [message], "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more,
    }  # fmt: skip


def _numbered() -> Iterator[HttpRequest]:
    """Requests with something that no other one has: a text, a path, a parameter of the URL."""
    number = NUMBER.decode()
    for model in ("text_embedding", "sequence_classification"):
        body = _dump({"instances": ["a known text", f"text {number}"]})
        data = render("POST", f"/v1/models/{model}:predict?n={number}", body)
        yield HttpRequest("v1 new text", data, _OFTEN, answers=Answers(read_first_prediction))
    body = _dump({"model": GENERATION, "prompt": f"new {number}", "max_tokens": 2, "temperature": 0, "user": number})
    data = render("POST", "/v1/completions", body)
    yield HttpRequest("openai new text", data, _USUAL, answers=Answers(lambda answer: sorted(json.loads(answer))))
    paths = (f"/v1/models/{number}", f"/v2/models/{number}/infer", f"/{number}", f"/v1/{number}/completions")
    for path in paths:
        yield HttpRequest("wrong: new path", render("GET", path), _SELDOM, frozenset({404, 405}), Answers(read_plain))


def _large() -> Iterator[HttpRequest]:
    """Bodies that are read in a thread, plain and compressed, and answers that are compressed."""
    texts = [*docstrings()[:_LARGE]]
    body = _dump({"instances": [text[:60] for text in texts]}).ljust(_INLINE_BYTES + 1)
    assert len(body) < MOST_BYTES
    path = "/v1/models/sequence_classification:predict"
    headers = {"content-encoding": "gzip", "accept-encoding": "gzip"}
    yield HttpRequest("v1 large gzip", render("POST", path, gzip.compress(body), headers), _RARE)
    yield HttpRequest("v1 large", render("POST", path, body), _RARE)
    yield _predict("v1 gzip", "text_embedding", texts[:4], _SELDOM, **{"accept-encoding": "gzip"})


def _spare() -> Iterator[HttpRequest]:
    """Of the model that is loaded and unloaded: a 503 meanwhile."""
    statuses = frozenset({200, 503})
    body = _dump({"instances": ["a text"]})
    yield HttpRequest("v1 spare", render("POST", f"/v1/models/{SPARE}:predict", body), _USUAL, statuses)
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["a text"]}
    data = render("POST", f"/v2/models/{SPARE}/infer", _dump({"inputs": [tensor]}))
    yield HttpRequest("v2 spare", data, _USUAL, statuses)


def _of_server() -> Iterator[HttpRequest]:
    for path in ("/v2/health/live", "/livez", "/v2/health/ready", "/readyz"):
        # It is not ready while the spare model is loaded.
        statuses = frozenset({200, 503}) if "ready" in path else _OK
        yield HttpRequest("health", render("GET", path), _USUAL, statuses, Answers(read_plain))
    for path in ("/v1/models/text_embedding", "/v2", "/v2/models/text_generation", "/v2/models"):
        yield HttpRequest("metadata", render("GET", path), _SELDOM)
    openmetrics = {"accept": "application/openmetrics-text; version=1.0.0"}
    for headers in ({}, openmetrics):
        yield HttpRequest(
            "metrics", render("GET", "/metrics", headers=headers), _RARE, answers=Answers(lambda body: len(body) > 100)
        )
    # It describes the models that are ready.
    docs = Answers(lambda body: sorted(json.loads(body)))
    yield HttpRequest("docs", render("GET", "/docs.json"), _RARE / 5, answers=docs)


def _wrong() -> Iterator[HttpRequest]:
    """Bad bodies, too large ones, and what no route takes."""
    predict, chat = "/v1/models/text_embedding:predict", "/v1/chat/completions"
    bomb = gzip.compress(bytes(4 * MOST_BYTES))
    right = _dump({"instances": ["a"]})
    chunk = b"%x\r\n%s\r\n" % (MOST_BYTES // 4, bytes(MOST_BYTES // 4))
    chunked = {"transfer-encoding": "chunked"}
    wrong: list[tuple[str, str, bytes, dict[str, str], int]] = [
        ("POST", predict, b'{"instances": ["a', {}, 400),
        ("POST", predict, b'{"instances": 7}', {}, 400),
        ("POST", predict, b'{"instances": [{"text": "a", "words": ["b"]}]}', {}, 400),
        ("POST", predict, b'{"instances": ["a"], "parameters": {"dimensions": -1}}', {}, 400),
        ("POST", predict, b"\xff\xfe", {}, 400),
        ("POST", predict, b"[" * 1000, {}, 413),
        ("POST", predict, bytes(9), {"content-encoding": "gzip"}, 400),
        ("POST", predict, bomb, {"content-encoding": "gzip"}, 413),
        ("POST", predict, right, {"content-type": "text/xml"}, 415),
        ("POST", predict, b"", {"content-length": str(2 * MOST_BYTES)}, 413),
        ("POST", predict, 5 * chunk + b"0\r\n\r\n", chunked, 413),
        ("PUT", predict, right, {"content-length": str(len(right))}, 405),
        ("POST", "/v2/models/text_embedding/infer", b'{"inputs": []}', {}, 400),
        ("POST", "/v2/models/nothing/infer", b'{"inputs": []}', {}, 404),
        ("POST", "/v2/repository/models/nothing/load", b"{}", {}, 404),
        ("POST", chat, _dump({**_chat("a", 2), "model": "nothing"}), {}, 404),
        ("POST", chat, _dump(_chat("a " * 2000, 2)), {}, 400),
        ("POST", chat, _dump(_chat("a", 2, n=10_000)), {}, 400),
        ("POST", "/embed?model=text_ranking", b'{"inputs": "a"}', {}, 424),
    ]
    for method, path, body, headers, status in wrong:
        data = render(method, path, body, headers)
        closes = int(headers.get("content-length", 0)) > len(body)
        yield HttpRequest(f"wrong: {status}", data, _SELDOM / 2, frozenset({status}), closes=closes)


def with_number(data: bytes, number: int) -> tuple[bytes, bytes]:
    """The bytes with a number in place of `NUMBER`, and what stands for it; no number of an answer looks like it."""
    label = b"n%07x" % number
    return data.replace(NUMBER, label), label
