"""Cohere's calls; tests/test_ranking_clients.py has its own client. Expected vectors are those of sentence-transformers."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, quantize_embeddings
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.embedders import save_embedder
from tests.families import MINILM

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 300]
PROMPTS = {"query": "search for: ", "passage": "passage: ", "Clustering": "group: ", "facts, news": "fact: "}


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm", max_request_bytes=100_000, max_client_batch_size=32).client


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(str(MINILM), device="cpu")


@pytest.fixture(scope="module")
def prompted(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with prompts, whose vectors have no fixed length."""
    source = model_folder("bert", "text_embedding")
    return save_embedder(tmp_path_factory.mktemp("prompted"), source, prompts=PROMPTS)


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_first_version_answers_with_the_vectors(embedder: TestClient, reference: SentenceTransformer) -> None:
    answer = post(embedder, "/v1/embed", texts=TEXTS, model="minilm")
    assert [*answer] == ["id", "response_type", "embeddings", "texts", "meta"]
    assert (answer["response_type"], answer["texts"]) == ("embeddings_floats", TEXTS)
    assert answer["meta"] == {"api_version": {"version": "1"}, "billed_units": {"input_tokens": 4 + 6 + 256}}
    np.testing.assert_allclose(answer["embeddings"], reference.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("path", ["/v1/embed", "/v2/embed"])
def test_types(path: str, embedder: TestClient, reference: SentenceTransformer) -> None:
    types = ["float", "int8", "uint8", "binary", "ubinary", "base64", "float"]
    answer = post(embedder, path, texts=TEXTS, embedding_types=types)
    assert (answer["response_type"], answer["meta"]["api_version"]) == ("embeddings_by_type", {"version": path[2]})
    found = answer["embeddings"]
    assert [*found] == types[:-1]
    expected: Any = reference.encode(TEXTS)
    np.testing.assert_allclose(found["float"], expected, atol=1e-5)
    decoded = [np.frombuffer(base64.b64decode(each), "<f4") for each in found["base64"]]
    np.testing.assert_array_equal(np.array(decoded), np.array(found["float"], np.float32))
    ranges = np.array([[-1.0], [1.0]]).repeat(384, axis=1)
    quantized: dict[str, Any] = {
        name: quantize_embeddings(expected, name, ranges) for name in ("int8", "uint8", "binary", "ubinary")
    }
    for name in ("int8", "uint8"):
        # The library has 255 steps from -1 to 1, of which it takes the one below.
        assert np.abs(np.array(found[name]) - quantized[name].astype(int)).max() <= 2
    for name in ("binary", "ubinary"):
        assert np.mean(np.array(found[name]) == quantized[name]) > 0.99, "but for numbers near 0"
    cosines = reference.similarity(expected, expected).numpy()
    bytes_ = np.array(found["int8"], float)
    np.testing.assert_allclose(bytes_ @ bytes_.T / 127**2, cosines, atol=0.01)


def test_the_second_version_answers_by_type(embedder: TestClient) -> None:
    plain = post(embedder, "/v2/embed", texts=TEXTS[:2], input_type="search_document")
    assert [*plain["embeddings"]] == ["float"]
    inputs = [{"content": [{"type": "text", "text": text}]} for text in TEXTS[:2]]
    assert post(embedder, "/v2/embed", inputs=inputs)["embeddings"] == plain["embeddings"]
    assert post(embedder, "/v2/embed", texts=TEXTS[:2], images=[], priority=3)["embeddings"] == plain["embeddings"]


@pytest.mark.parametrize(
    ("input_type", "prompt"),
    [
        (None, None), ("search_query", "query"), ("query", "query"), ("passage", "passage"),
        ("Clustering", "Clustering"), ("clustering", None), ("classification", None), ("facts, news", "facts, news"),
    ],
)  # fmt: skip
def test_input_types_are_prompts(input_type: str | None, prompt: str | None, prompted: Path, serve: Serve) -> None:
    expected = SentenceTransformer(str(prompted), device="cpu").encode(TEXTS, prompt_name=prompt)
    found = post(serve(model_dir=prompted).client, "/v2/embed", texts=TEXTS, input_type=input_type)
    np.testing.assert_allclose(found["embeddings"]["float"], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["document", "passage", "corpus", "other"])
def test_documents_have_the_model_s_prompt_for_documents(
    name: str, prompted: Path, tmp_path: Path, serve: Serve
) -> None:
    folder = tmp_path / name
    shutil.copytree(prompted, folder)
    settings = json.loads((folder / "config_sentence_transformers.json").read_text())
    settings |= {"prompts": {"query": "q: ", name: "text: "}, "default_prompt_name": "query"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    reference = SentenceTransformer(str(folder), device="cpu")
    client = serve(model_dir=folder).client
    # Without one, the model's default prompt.
    by_type = {"search_query": "query", "search_document": "query" if name == "other" else name}
    for input_type, prompt in by_type.items():
        found = post(client, "/v2/embed", texts=TEXTS, input_type=input_type)["embeddings"]["float"]
        np.testing.assert_allclose(found, reference.encode(TEXTS, prompt_name=prompt), atol=1e-5)


def test_truncate(embedder: TestClient, serve: Serve, reference: SentenceTransformer) -> None:
    words = [f"word{number}" for number in range(300)]
    text = " ".join(words)
    ends = post(embedder, "/v1/embed", texts=[text], truncate="END")["embeddings"]
    np.testing.assert_allclose(ends, reference.encode([text]), atol=1e-5)
    starts = post(embedder, "/v1/embed", texts=[text], truncate="START")["embeddings"]
    reference.tokenizer.truncation_side = "left"
    try:
        np.testing.assert_allclose(starts, reference.encode([text]), atol=1e-5)
    finally:
        reference.tokenizer.truncation_side = "right"
    refused = embedder.post("/v1/embed", json={"texts": ["x", text], "truncate": "NONE"})
    assert (refused.status_code, refused.json()["message"][:24]) == (400, "text 1 cannot be served:")
    strict = serve(model_dir=MINILM, truncation=False).client
    assert strict.post("/v1/embed", json={"texts": [text]}).status_code == 400
    assert post(strict, "/v1/embed", texts=[text], truncate="END")["embeddings"] == ends


def test_max_tokens(embedder: TestClient, reference: SentenceTransformer) -> None:
    text = "one two three four five six"
    for truncate in ("END", None):
        answer = post(embedder, "/v2/embed", texts=[text, "one"], max_tokens=3, truncate=truncate)
        np.testing.assert_allclose(answer["embeddings"]["float"], reference.encode(["one two three", "one"]), atol=1e-5)
        assert answer["texts"] == [text, "one"]
        assert answer["meta"]["billed_units"] == {"input_tokens": 5 + 3}
    refused = embedder.post("/v2/embed", json={"texts": ["one", text], "max_tokens": 3, "truncate": "NONE"})
    assert (refused.status_code, refused.json()) == (400, {"message": "texts[1] has more than 3 tokens (max_tokens)"})
    assert "embeddings" in post(embedder, "/v2/embed", texts=["one"], max_tokens=3, truncate="NONE")


def test_output_dimension(embedder: TestClient, reference: SentenceTransformer) -> None:
    answer = post(embedder, "/v2/embed", texts=TEXTS, output_dimension=16)
    expected = reference.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(answer["embeddings"]["float"], expected, atol=1e-5)


@pytest.mark.parametrize("task", ["text_embedding", "fill_mask", "text_ranking"])
def test_tokens(task: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", task)
    check_tokens(serve(model_dir=folder).client, AutoTokenizer.from_pretrained(folder))


def test_tokens_of_a_generator(generator_folder: GeneratorFolder, serve: Serve) -> None:
    folder = generator_folder("llama")
    check_tokens(serve(model_dir=folder, backend="huggingface").client, AutoTokenizer.from_pretrained(folder))


def check_tokens(client: TestClient, tokenizer: Any) -> None:
    answer = post(client, "/v1/tokenize", text="Hello world", model="model")
    ids = tokenizer("Hello world", add_special_tokens=False)["input_ids"]
    meta = {"api_version": {"version": "1"}}
    assert answer == {"tokens": ids, "token_strings": tokenizer.convert_ids_to_tokens(ids), "meta": meta}
    assert post(client, "/v1/detokenize", tokens=ids, model="model") == {"text": tokenizer.decode(ids), "meta": meta}


TYPES = "'base64', 'binary', 'float', 'int8', 'ubinary', 'uint8'"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/embed", "{", 400, "the body is not valid JSON: Input data was truncated"),
        ("/v1/embed", "", 400, "the body is empty; it must be a JSON object"),
        ("/v1/embed", {}, 400, "give one of texts and inputs"),
        ("/v2/embed", {"texts": ["x"], "inputs": []}, 400, "give one of texts and inputs"),
        ("/v2/embed", {"texts": []}, 400, "texts is empty; give at least one"),
        ("/v2/embed", {"inputs": []}, 400, "inputs is empty; give at least one"),
        ("/v2/embed", {"texts": ["x", ""]}, 400, "texts[1] is empty; give at least a character"),
        ("/v2/embed", {"texts": ["x"], "truncat": "END"}, 400,
         "the body is not as expected: Object contains unknown field `truncat`"),
        ("/v1/tokenize", {"text": "x", "add_special_tokens": True}, 400,
         "the body is not as expected: Object contains unknown field `add_special_tokens`"),
        ("/v2/embed", {"texts": "x"}, 400, "the body is not as expected: Expected `array | null`, got `str` - at `$.texts`"),
        ("/v2/embed", {"images": ["data:image/png;base64,"]}, 400, "images cannot be embedded: this server embeds texts"),
        ("/v2/embed", {"inputs": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, 400,
         "the body is not as expected: Invalid enum value 'image_url' - at `$.inputs[0].content[0].type`"),
        ("/v2/embed", {"inputs": [{"content": [{"type": "text", "text": "x"}] * 2}]}, 400,
         "the body is not as expected: Expected `array` of length <= 1 - at `$.inputs[0].content`"),
        ("/v2/embed", {"texts": ["x"], "embedding_types": ["int4"]}, 400,
         "the body is not as expected: Invalid enum value 'int4' - at `$.embedding_types[0]`"),
        ("/v2/embed", {"texts": ["x"], "embedding_types": []}, 400,
         "the body is not as expected: Expected `array` of length >= 1 - at `$.embedding_types`"),
        ("/v2/embed", {"texts": ["x"], "embedding_types": ["binary"], "output_dimension": 12}, 400,
         "embedding_types has bits, but the vectors have 12 numbers, which is no multiple of 8"),
        ("/v2/embed", {"texts": ["x"], "truncate": "end"}, 400,
         "the body is not as expected: Invalid enum value 'end' - at `$.truncate`"),
        ("/v2/embed", {"texts": ["x"], "input_type": "image"}, 400,
         "input_type is 'image'; it may be search_query, search_document, query, document, passage, classification, clustering"),
        ("/v2/embed", {"texts": ["x"], "output_dimension": 999}, 400, "dimensions is 999; the model's vectors have 384"),
        ("/v2/embed", {"texts": ["x"], "max_tokens": 9, "truncate": "START"}, 400,
         "max_tokens cannot be combined with START: leave out one of them"),
        ("/v2/embed", {"texts": ["x"], "max_tokens": 0}, 400,
         "the body is not as expected: Expected `int` >= 1 - at `$.max_tokens`"),
        ("/v2/embed", {"texts": ["x"], "model": "no"}, 404, "Model with name no does not exist. This server has minilm."),
        ("/v2/embed", {"texts": ["x"] * 33}, 413, "33 texts are more than the 32 that --max_client_batch_size allows"),
        ("/v1/embed", {"texts": ["x" * 100_000]}, 413, "the body has 100015 bytes; at most 100000 are allowed"),
        ("/v1/tokenize", {"text": ""}, 400, "the body is not as expected: Expected `str` of length >= 1 - at `$.text`"),
        ("/v1/tokenize", {}, 400, "the body is not as expected: Object missing required field `text`"),
        ("/v1/detokenize", {"tokens": [99_999_999]}, 400, "text 0 cannot be served: there is no token 99999999: the vocabulary ends at 30521"),
    ],
)  # fmt: skip
def test_errors(path: str, body: Any, status: int, message: str, embedder: TestClient) -> None:
    response = embedder.post(path, content=body if isinstance(body, str) else json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"message": message})


def test_other_methods(embedder: TestClient) -> None:
    response = embedder.get("/v2/embed")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json() == {"message": "GET is not allowed on /v2/embed; allowed: POST"}


def test_another_task(model_folder: ModelFolder, serve: Serve) -> None:
    response = serve(model_dir=model_folder("bert", "fill_mask")).client.post("/v2/embed", json={"texts": ["x"]})
    assert response.status_code == 400
    assert response.json()["message"] == (
        "model does not serve /v2/embed: it serves fill_mask at /v1/models/model:predict, /v2/models/model/infer"
    )


def test_several_models(serve_several: ServeSeveral, model_folder: ModelFolder) -> None:
    client = serve_several(
        {"model_dir": model_folder("bert", "text_embedding"), "model_name": "tiny"},
        {"model_dir": MINILM, "model_name": "minilm"},
        {"model_dir": model_folder("bert", "fill_mask"), "model_name": "fill"},
        api_key="secret",
    ).client
    client.headers["authorization"] = "Bearer secret"
    for name, width in (("tiny", 32), ("minilm", 384)):
        [vector] = post(client, "/v1/embed", texts=["x"], model=name)["embeddings"]
        assert len(vector) == width
    refused = client.post("/v1/embed", json={"texts": ["x"]})
    assert refused.json()["message"] == "several models serve /v1/embed; name one with model in the body: tiny, minilm"
    assert len(post(client, "/v1/tokenize", text="x", model="fill")["tokens"]) == 1
    assert client.post("/v1/embed", json={"texts": ["x"]}, headers={"authorization": "Bearer no"}).status_code == 401


def test_records(embedder: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    post(embedder, "/v2/embed", texts=TEXTS)
    remove_observer(records.append)
    [record] = records
    assert (record.protocol, record.route, record.model_name, record.texts) == ("cohere", "/v2/embed", "minilm", 3)
