"""Text Embeddings Inference's tokens, against the tokenizers library that that server uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from tokenizers import Tokenizer

from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.protocol.tei.conftest import Post

TEXTS = ["Hello wörld, [MASK] <mask>", "unbelievable 中文 😀 É", "a"]
TASKS = {"bert": "sequence_classification", "roberta": "fill_mask", "albert": "token_classification"}


def list_tokens(tokenizer: Tokenizer, text: str, special: bool) -> list[dict[str, Any]]:
    """As `into_tokens` in core/src/tokenization.rs does, whose offsets are bytes."""
    encoding = tokenizer.encode(text, add_special_tokens=special)
    tokens = []
    for index, (start, stop) in enumerate(encoding.offsets):
        is_special = bool(encoding.special_tokens_mask[index])
        before, piece = text[:start].encode(), text[start:stop].encode()
        span = (None, None) if is_special else (len(before), len(before) + len(piece))
        shown = encoding.tokens[index] if is_special else piece.decode()
        tokens.append(
            {"id": encoding.ids[index], "text": shown, "special": is_special, "start": span[0], "stop": span[1]}
        )
    return tokens


@pytest.mark.parametrize("family", TASKS)
@pytest.mark.parametrize("special", [True, False])
def test_tokens(family: str, special: bool, model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    folder = model_folder(family, TASKS[family])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    client = serve(model_dir=folder).client
    expected = [list_tokens(tokenizer, text, special) for text in TEXTS]
    assert post(client, "/tokenize", inputs=TEXTS, add_special_tokens=special) == expected
    assert post(client, "/tokenize", inputs=TEXTS[0], add_special_tokens=special) == expected[:1]
    assert post(client, "/tokenize", inputs=TEXTS) == [list_tokens(tokenizer, text, True) for text in TEXTS]
    ids = [[token["id"] for token in tokens] for tokens in expected]
    for skipped in (True, False):
        texts = tokenizer.decode_batch(ids, skip_special_tokens=skipped)
        assert post(client, "/decode", ids=ids, skip_special_tokens=skipped) == texts
        assert post(client, "/decode", ids=ids[1], skip_special_tokens=skipped) == texts[1:2]
    assert post(client, "/decode", ids=ids) == tokenizer.decode_batch(ids, skip_special_tokens=True)


def test_long_texts_are_whole(classifier: TestClient, post: Post) -> None:
    [tokens] = post(classifier, "/tokenize", inputs="word é " * 20_000)
    assert len(tokens) == 2 + 40_000
    # Of bytes, of which é has two.
    assert (tokens[-2]["start"], tokens[-2]["stop"], tokens[-2]["text"]) == (159_997, 159_999, "é")
    [text] = post(classifier, "/decode", ids=[token["id"] for token in tokens])
    assert text == " ".join(["word e"] * 20_000)


def test_a_prompt(model_folder: ModelFolder, serve: Serve, post: Post, tmp_path: Path) -> None:
    for file in model_folder("bert", "text_embedding").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find "}}))
    client = serve(model_dir=tmp_path).client
    whole = post(client, "/tokenize", inputs="find it")
    assert post(client, "/tokenize", inputs="it", prompt_name="query") == whole
    assert post(client, "/tokenize", inputs="it", prompt_name=None) != whole


def test_a_generator(generator_folder: GeneratorFolder, serve: Serve, post: Post) -> None:
    """Where its tokens are is not known."""
    client = serve(model_dir=generator_folder("gpt2"), backend="huggingface").client
    [tokens] = post(client, "/tokenize", inputs="Return the")
    assert [(token["text"], token["special"]) for token in tokens][1:-1] == [("Return", False), ("\u0120the", False)]
    assert {token["start"] for token in tokens} == {token["stop"] for token in tokens} == {None}
    assert post(client, "/decode", ids=[token["id"] for token in tokens]) == ["Return the"]


def test_the_path_is_vllms_too(classifier: TestClient, post: Post) -> None:
    """Whose body has another field, and which counts the tokens."""
    [tokens] = post(classifier, "/tokenize", inputs="a text")
    answer = post(classifier, "/tokenize", prompt="a text")
    assert answer["tokens"] == [token["id"] for token in tokens]
    wrong = classifier.post("/tokenize", json={"text": "a"})
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        400,
        "the body must have prompt or messages or inputs",
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "kind"),
    [
        ("/tokenize", {"inputs": []}, 400, "inputs is empty, or has an empty text; give at least a character", "Empty"),
        ("/tokenize", {"inputs": ["a", ""]}, 400, "inputs is empty, or has an empty text; give at least a character", "Empty"),
        ("/tokenize", {"inputs": "a", "prompt_name": "x"}, 422,
         "the parameter prompt_name does not apply to sequence_classification, whose options are: ", "Validation"),
        ("/tokenize", {"inputs": ["a"] * 4097}, 413,
         "4097 texts are more than the 4096 that --max_client_batch_size allows", "Validation"),
        ("/decode", {"ids": []}, 400, "ids is empty, or has an empty list; give at least a token", "Empty"),
        ("/decode", {"ids": [[1], []]}, 400, "ids is empty, or has an empty list; give at least a token", "Empty"),
        ("/decode", {"ids": [1, [2]]}, 422,
         "ids has both token ids and lists of them; give one list, or a list for each text", "Validation"),
        ("/decode", {"ids": [[1], [10**6]]}, 422,
         "text 1 cannot be served: there is no token 1000000: the vocabulary ends at 30521", "Validation"),
        ("/decode", {"ids": [-1]}, 422, "the body is not as expected: Expected `int` >= 0 - at `$.ids[0]`", "Validation"),
        ("/decode", {"ids": "a"}, 422, "the body is not as expected: Expected `array`, got `str` - at `$.ids`", "Validation"),
    ],
)  # fmt: skip
def test_errors(path: str, body: Any, status: int, message: str, kind: str, classifier: TestClient) -> None:
    response = classifier.post(path, json=body)
    assert (response.status_code, response.json()["error_type"]) == (status, kind)
    assert response.json()["error"].startswith(message)
