"""OpenAI's embeddings on this server's own engine; tests/test_generation.py has those on vLLM."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from tests.conftest import ModelFolder, Serve
from tests.embedders import save_embedder
from tests.families import MINILM

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 200]
# [CLS] and [SEP] included; the last one is truncated to what the model's files say.
TOKENS = [4, 6, 256]
# Of sentence-transformers/all-MiniLM-L6-v2 for "Hello world", as its users publish them.
PUBLISHED = [-0.0344772, 0.0310232, 0.00673496]
PROMPTS = {"query": "search for: ", "passage": ""}


@pytest.fixture(scope="module")
def http(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm", max_request_bytes=100_000, max_queue_tokens=1000).client


@pytest.fixture(scope="module", params=["/openai/v1", "/openai", "/v1", ""])
def client(http: TestClient, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://testserver{request.param}", api_key="none", http_client=http, max_retries=0)


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(MINILM), device="cpu")


@pytest.fixture(scope="module")
def prompted(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with prompts by name, whose vectors have no fixed length."""
    source = model_folder("bert", "text_embedding")
    return save_embedder(tmp_path_factory.mktemp("prompted"), source, prompts=PROMPTS)


def embed(client: openai.OpenAI, given: Any, **more: Any) -> NDArray[np.float64]:
    answer = client.embeddings.create(model="minilm", input=given, **more)
    assert [each.index for each in answer.data] == list(range(len(answer.data)))
    return np.array([each.embedding for each in answer.data])


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}, {"user": "me", "extra_body": {"other": 1}}])
def test_vectors_are_those_of_sentence_transformers(
    client: openai.OpenAI, reference: SentenceTransformer, options: dict[str, Any]
) -> None:
    """Without an `encoding_format` the client asks for base64."""
    np.testing.assert_allclose(embed(client, TEXTS, **options), reference.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(embed(client, TEXTS[0], **options)[0, :3], PUBLISHED, atol=1e-6)


def test_base64_is_little_endian_float32(http: TestClient) -> None:
    numbers, text = (
        http.post("/v1/embeddings", json={"input": TEXTS[0], "encoding_format": form}).json()["data"][0]["embedding"]
        for form in ("float", "base64")
    )
    assert np.array(numbers, dtype=np.float32).tolist() == np.frombuffer(base64.b64decode(text), "<f4").tolist()


# What torch writes for each `embed_dtype`.
DTYPES = {
    "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2,
}  # fmt: skip


@pytest.mark.parametrize("endianness", [None, "native", "little", "big"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_types_of_bytes(http: TestClient, dtype: str, endianness: str | None) -> None:
    """In JSON, and as the bytes of all texts together, with and without the header that says where each is."""
    body = {"input": TEXTS[:2], "dimensions": 50, "embed_dtype": dtype, "endianness": endianness, "request_id": "7"}
    vectors = http.post("/v1/embeddings", json=body).json()["data"]
    expected = [
        torch.tensor(each["embedding"]).to(DTYPES[dtype]).view(torch.uint8).numpy().reshape(50, -1) for each in vectors
    ]
    if endianness == "big":
        expected = [each[:, ::-1] for each in expected]
    in_json = http.post("/v1/embeddings", json={**body, "encoding_format": "base64"}).json()
    assert [base64.b64decode(each["embedding"]) for each in in_json["data"]] == [each.tobytes() for each in expected]
    only = http.post("/openai/v1/embeddings", json={**body, "encoding_format": "bytes_only"})
    assert only.content == b"".join(each.tobytes() for each in expected)
    assert (only.headers["content-type"], "metadata" in only.headers) == ("application/octet-stream", False)
    described = http.post("/v1/embeddings", json={**body, "encoding_format": "bytes"})
    assert described.content == only.content
    metadata = json.loads(described.headers["metadata"])
    size = expected[0].nbytes
    assert (metadata["id"], metadata["usage"]) == ("embd-7", in_json["usage"])
    assert metadata["data"] == [
        {
            "index": index, "embed_dtype": dtype, "endianness": endianness or "native", "start": index * size,
            "end": (index + 1) * size, "shape": [50],
        }
        for index in range(2)
    ]  # fmt: skip


def test_the_header_of_bytes_is_short(http: TestClient) -> None:
    body = {"input": ["a"] * 400, "dimensions": 1, "encoding_format": "bytes"}
    refused = http.post("/v1/embeddings", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "encoding_format")
    assert error["message"].endswith("it may have 32768: send fewer texts, or set encoding_format to bytes_only")
    assert len(http.post("/v1/embeddings", json={**body, "encoding_format": "bytes_only"}).content) == 4 * 400


@pytest.mark.slow
def test_vllms_client_reads_the_bytes(http: TestClient, reference: SentenceTransformer) -> None:
    utils = pytest.importorskip("vllm.entrypoints.pooling.utils")
    body = {"input": TEXTS, "encoding_format": "bytes", "embed_dtype": "bfloat16", "endianness": "big"}
    answer = http.post("/v1/embeddings", json=body)
    items = [utils.MetadataItem(**each) for each in json.loads(answer.headers["metadata"])["data"]]
    found = torch.stack(utils.decode_pooling_output(items, answer.content)).float()
    np.testing.assert_allclose(found, reference.encode(TEXTS), atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"encoding_format": "float"}])
@pytest.mark.parametrize("dimensions", [1, 64, 384])
def test_dimensions(
    client: openai.OpenAI, reference: SentenceTransformer, dimensions: int, options: dict[str, Any]
) -> None:
    found = embed(client, TEXTS, dimensions=dimensions, **options)
    expected = reference.encode(TEXTS, truncate_dim=dimensions, normalize_embeddings=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_token_ids_are_the_same_as_their_texts(client: openai.OpenAI) -> None:
    texts = embed(client, TEXTS[:2])
    ids: Any = [AutoTokenizer.from_pretrained(MINILM)(text)["input_ids"] for text in TEXTS[:2]]
    np.testing.assert_allclose(embed(client, ids), texts, atol=1e-6)
    np.testing.assert_allclose(embed(client, ids[0]), texts[:1], atol=1e-6)


def test_an_answer(http: TestClient) -> None:
    answer = http.post("/openai/v1/embeddings", json={"model": "minilm", "input": TEXTS}).json()
    assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
    assert answer["id"].startswith("embd-")
    assert (answer["object"], answer["model"]) == ("list", "minilm")
    assert answer["usage"] == {"prompt_tokens": sum(TOKENS), "total_tokens": sum(TOKENS)}
    assert [(each["object"], each["index"], len(each["embedding"])) for each in answer["data"]] == [
        ("embedding", index, 384) for index in range(3)
    ]


def test_a_text_may_lose_its_beginning(client: openai.OpenAI, reference: SentenceTransformer) -> None:
    text = "Hello world " + TEXTS[2]
    ids = AutoTokenizer.from_pretrained(MINILM, truncation_side="left")(text, truncation=True, max_length=256).input_ids
    found = embed(client, text, extra_body={"truncation_side": "left", "truncate_prompt_tokens": -1})
    np.testing.assert_allclose(found, embed(client, ids), atol=1e-6)
    assert np.abs(found - reference.encode([text])).max() > 1e-3


@pytest.mark.parametrize("side", [None, "right", "left"])
@pytest.mark.parametrize("length", [-1, 3, 10, 256])
def test_truncation(client: openai.OpenAI, http: TestClient, length: int, side: Any) -> None:
    """Of texts as the tokenizer does it, of token ids as a list, as in vLLM."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM, truncation_side=side or "right")
    most = length if length > 0 else 256
    body = {"input": TEXTS, "truncate_prompt_tokens": length, "truncation_side": side}
    found = http.post("/v1/embeddings", json=body).json()
    kept = tokenizer(TEXTS, truncation=True, max_length=most).input_ids
    assert found["usage"]["prompt_tokens"] == sum(map(len, kept))
    np.testing.assert_allclose([each["embedding"] for each in found["data"]], embed(client, kept), atol=1e-6)
    whole = tokenizer(TEXTS).input_ids
    of_ids = http.post("/v1/embeddings", json={**body, "input": whole}).json()
    cut = [ids[-most:] if side == "left" else ids[:most] for ids in whole]
    np.testing.assert_allclose([each["embedding"] for each in of_ids["data"]], embed(client, cut), atol=1e-6)


def test_texts_without_special_tokens(client: openai.OpenAI) -> None:
    ids: Any = AutoTokenizer.from_pretrained(MINILM)(TEXTS[:2], add_special_tokens=False).input_ids
    found = embed(client, TEXTS[:2], extra_body={"add_special_tokens": False})
    np.testing.assert_allclose(found, embed(client, ids), atol=1e-6)
    assert np.abs(found - embed(client, TEXTS[:2], extra_body={"add_special_tokens": True})).max() > 1e-3


def test_many_texts(client: openai.OpenAI, http: TestClient) -> None:
    """More numbers than are rendered on the event loop, and more texts than are tokenized at once."""
    texts = [f"text {number}" for number in range(200)]
    predicted = http.post("/v1/models/minilm:predict", json={"instances": texts}).json()["predictions"]
    np.testing.assert_allclose(embed(client, texts, encoding_format="float"), predicted, atol=1e-6)


def test_the_operators_options_hold_where_a_request_has_none(serve: Serve, prompted: Path) -> None:
    client = serve(model_dir=prompted, dimensions=5, prompt_name="query").client
    reference = SentenceTransformer(str(prompted), device="cpu")
    own = client.post("/v1/embeddings", json={"input": "x"}).json()
    expected = reference.encode("x", prompt_name="query", truncate_dim=5)
    np.testing.assert_allclose(own["data"][0]["embedding"], expected, atol=1e-5)
    [v1] = client.post("/v1/models/model:predict", json={"instances": ["x"]}).json()["predictions"]
    np.testing.assert_allclose(v1, expected, atol=1e-5)
    asked = {"input": "x", "dimensions": 7, "prompt_name": "passage"}
    other = client.post("/v1/embeddings", json=asked).json()
    assert own["usage"]["prompt_tokens"] - other["usage"]["prompt_tokens"] == 3
    expected = reference.encode("x", prompt_name="passage", truncate_dim=7)
    np.testing.assert_allclose(other["data"][0]["embedding"], expected, atol=1e-5)
    # What the operator has set does not keep tokens out; before them there is no prompt.
    assert client.post("/v1/embeddings", json={"input": [5, 6]}).json()["usage"]["total_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({"input": "x", "model": "nope"}, 404, "model", "Model with name nope does not exist. This server has minilm."),
        ({}, 400, "input", "missing required field `input`"),
        ("{", 400, None, "the body is not valid JSON"),
        ({"input": None}, 400, "input", "at `$.input`"),
        ({"input": []}, 400, "input", "input must be a text, token ids, or a list of either, and not empty"),
        ({"input": ""}, 400, "input", "input is empty; give at least a character or a token"),
        ({"input": ["x", ""]}, 400, "input", "input[1] is empty"),
        ({"input": [[1], []]}, 400, "input", "input[1] is empty"),
        ({"input": ["x", [1]]}, 400, "input", "input must be a text, token ids, or a list of either"),
        ({"input": [1, "x"]}, 400, "input", "input must be a text, token ids, or a list of either"),
        ({"input": [True]}, 400, "input", "at `$.input[0]`"),
        ({"input": [-1]}, 400, "input", "at `$.input[0]`"),
        ({"input": [[1], [30522]]}, 400, None, "text 1 cannot be served: 30522 is none of the model's input_ids"),
        ({"input": [1] * 300}, 400, None, "text 0 cannot be served: it has 300 tokens; the model takes 256"),
        ({"input": "x", "dimensions": -1}, 400, "dimensions", "Expected `int` >= 0 - at `$.dimensions`"),
        ({"input": "x", "dimensions": 1.5}, 400, "dimensions", "at `$.dimensions`"),
        ({"input": "x", "dimensions": 385}, 400, "dimensions", "dimensions is 385; the model's vectors have 384"),
        ({"input": "x", "encoding_format": "hex"}, 400, "encoding_format", "Invalid enum value 'hex' - at `$.encoding_format`"),
        ({"input": "x", "prompt_name": "query"}, 400, "prompt_name", "there is no prompt 'query': the model has none"),
        ({"input": "x", "truncate_prompt_tokens": 257}, 400, "truncate_prompt_tokens", "it can be -1, or 1 to 256"),
        ({"input": "x", "truncate_prompt_tokens": 0}, 400, "truncate_prompt_tokens", "truncate_prompt_tokens is 0; it"),
        ({"input": "x", "truncate_prompt_tokens": 2}, 400, "truncate_prompt_tokens", "special tokens alone take 2"),
        ({"input": "x", "truncate_prompt_tokens": -2}, 400, "truncate_prompt_tokens", "Expected `int` >= -1"),
        ({"input": "x", "truncation_side": "middle"}, 400, "truncation_side", "Invalid enum value 'middle'"),
        ({"input": "x", "use_activation": False}, 400, "use_activation", "use_activation can only be true"),
        ({"input": "x", "embed_dtype": "int8"}, 400, "embed_dtype", "Invalid enum value 'int8'"),
        ({"input": "x", "add_special_tokens": 0}, 400, "add_special_tokens", "Expected `bool | null`, got `int`"),
        ({"input": "", "add_special_tokens": False}, 400, "input", "input is empty"),
        ({"messages": [{"role": "user", "content": "x"}]}, 400, "messages", "messages is not supported here"),
        ({"input": [[1] * 600, [2] * 500]}, 413, None, "1100 tokens of all texts are more than the 1000 that --max_queue_tokens allows"),
        ({"input": "x" * 100_000}, 413, None, "bytes; at most 100000 are allowed"),
    ],
)  # fmt: skip
def test_errors(http: TestClient, body: Any, status: int, param: str | None, message: str) -> None:
    response = http.post("/openai/v1/embeddings", content=body if isinstance(body, str) else json.dumps(body))
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert message in error["message"]


def test_errors_reach_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nope", input="x")
    with pytest.raises(openai.BadRequestError, match="the model's vectors have 384"):
        client.embeddings.create(model="minilm", input="x", dimensions=1000)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("embeddings", "model does not serve /v1/embeddings: it serves fill_mask at /v1/models/model:predict, /v2"),
        ("completions", "model does not serve /v1/completions: it serves fill_mask at"),
    ],
)
def test_another_task_has_no_embeddings(model_folder: ModelFolder, serve: Serve, path: str, message: str) -> None:
    response = serve(model_dir=model_folder("bert", "fill_mask")).client.post(f"/v1/{path}", json={"input": "x"})
    assert (response.status_code, response.json()["error"]["type"]) == (400, "BadRequestError")
    assert message in response.json()["error"]["message"]


def test_a_model_that_embeds_says_where(http: TestClient) -> None:
    message = http.post("/v1/completions", json={"prompt": "x"}).json()["error"]["message"]
    assert message.endswith(
        "it serves text_embedding at /v1/models/minilm:predict, /v2/models/minilm/infer, /v1/embeddings, /v1/rerank, "
        "/v1/score, /v1/pooling"
    )
    assert http.get("/v1/embeddings").status_code == 405


def test_a_key(serve: Serve, prompted: Path) -> None:
    client = serve(model_dir=prompted, api_key="secret").client
    assert client.post("/v1/embeddings", json={"input": "x"}).status_code == 401
    answer = client.post("/v1/embeddings", json={"input": "x"}, headers={"authorization": "Bearer secret"})
    assert answer.status_code == 200


def test_overload(serve: Serve, prompted: Path) -> None:
    served = serve(model_dir=prompted, max_concurrent_requests=1)
    # A request that is under way for as long as the test wants.
    served.runner._model().queue.admission.requests = 1
    response = served.client.post("/v1/embeddings", json={"input": "x"})
    assert (response.status_code, response.json()["error"]["type"]) == (429, "TooManyRequestsError")
    assert int(response.headers["retry-after"]) >= 1


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dimensions": 33}, "dimensions is 33; the model's vectors have 32"),
        ({"dimensions": True}, "the parameter dimensions is wrong: Input should be a valid integer"),
        ({"prompt_name": "nope"}, "there is no prompt 'nope': there are document, passage, query"),
        (
            {"top_k": 1},
            "the parameter top_k does not apply to text_embedding, whose options are: dimensions, normalize, prompt_name, return_truncated_tokens, truncation, truncation_side",
        ),
    ],
)
def test_errors_of_the_other_protocols(serve: Serve, prompted: Path, parameters: dict[str, Any], message: str) -> None:
    client = serve(model_dir=prompted).client
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    for response in (
        client.post("/v1/models/model:predict", json={"instances": ["x"], "parameters": parameters}),
        client.post("/v2/models/model/infer", json={"inputs": [tensor], "parameters": parameters}),
    ):
        assert (response.status_code, response.json()["error"]) == (400, message)


def test_a_prompt_before_tokens(serve: Serve, prompted: Path) -> None:
    response = serve(model_dir=prompted).client.post("/v1/embeddings", json={"input": [5], "prompt_name": "query"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "prompt_name needs texts, but the request has token ids"


def test_infinity(http: TestClient) -> None:
    """Its client sends these fields by default."""
    body = {"input": TEXTS, "model": "default/not-specified", "dimensions": 0, "modality": "text"}
    answer = http.post("/embeddings", json=body).json()
    assert answer["data"] == http.post("/v1/embeddings", json={"input": TEXTS}).json()["data"]
    [short] = http.post("/embeddings", json={"input": TEXTS[0], "output_dimension": 16}).json()["data"]
    assert short == http.post("/v1/embeddings", json={"input": TEXTS[0], "dimensions": 16}).json()["data"][0]
    refused = http.post("/embeddings", json={**body, "modality": "image"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "modality")


def test_input_types_are_prompts(prompted: Path, serve: Serve) -> None:
    client = serve(model_dir=prompted).client

    def ask(**fields: Any) -> Any:
        response = client.post("/v1/embeddings", json={"input": TEXTS, **fields})
        return response.json()["data"] if response.status_code == 200 else response.json()["error"]["message"]

    for input_type, name in (("query", "query"), ("search_query", "query"), ("document", "passage")):
        assert ask(input_type=input_type) == ask(prompt_name=name)
        assert ask(input_type=input_type) != ask(prompt_name={"query": "passage", "passage": "query"}[name])
    assert ask(input_type="clustering") == ask()
    assert ask(input_type="image").startswith("input_type is 'image'; it may be search_query, search_document, query")


@pytest.mark.parametrize("name", ["use_activation", "normalize", "normalized"])
def test_normalization_has_three_names(name: str, http: TestClient, prompted: Path, serve: Serve) -> None:
    client = serve(model_dir=prompted).client
    for value in (True, False):
        lengths = [
            float(np.linalg.norm(each["embedding"]))
            for each in client.post("/v1/embeddings", json={"input": TEXTS, name: value}).json()["data"]
        ]
        assert np.allclose(lengths, 1, atol=1e-5) == value
    assert http.post("/v1/embeddings", json={"input": TEXTS, name: True}).status_code == 200
    refused = http.post("/v1/embeddings", json={"input": TEXTS, name: False})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "use_activation")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"dimensions": 3, "output_dimension": 4}, "dimensions and output_dimension"),
        ({"use_activation": True, "normalize": False}, "use_activation and normalize"),
        ({"prompt_name": "query", "input_type": "document"}, "prompt_name and input_type"),
    ],
)
def test_fields_that_contradict_each_other(fields: dict[str, Any], names: str, http: TestClient) -> None:
    response = http.post("/v1/embeddings", json={"input": TEXTS, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == f"{names} contradict each other; give one of them"


def test_the_list_of_models_at_the_root_is_infinity_s(http: TestClient) -> None:
    [card] = http.get("/models").json()["data"]
    [usual] = http.get("/v1/models").json()["data"]
    assert card == {**usual, "owned_by": "infinity", "stats": {}}
