"""A translator with defaults of its own, over every protocol that generates: what `generate()` gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from tests.conftest import Serve
from tests.generated import copy_with_defaults, generate, load
from tests.translators import KINDS, save_translator

TEXT = "return the value of the key"
SOURCE, TARGET = KINDS["nllb"][2:]
LANGUAGES = {"src_lang": SOURCE, "tgt_lang": TARGET}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("translator")
    return copy_with_defaults(save_translator(root, "nllb"), root / "configured", num_beams=3, max_length=25)


@pytest.fixture(scope="module")
def client(folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=folder, backend="huggingface", model_name="nllb").client


@pytest.fixture(scope="module")
def translate(folder: Path) -> Any:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load(folder)

    def make(source: str, target: str, **settings: Any) -> list[str]:
        inputs = tokenizer._build_translation_inputs(TEXT, return_tensors="pt", src_lang=source, tgt_lang=target)
        prompt = inputs.pop("input_ids")[0].tolist()
        outputs = generate(model, prompt, forced_bos_token_id=inputs["forced_bos_token_id"], **settings)
        return [str(tokenizer.decode(output, skip_special_tokens=True)) for output in outputs]

    return make


def complete(client: TestClient, **given: Any) -> list[str]:
    answer = client.post("/v1/completions", json={"model": "nllb", "prompt": TEXT, **given})
    assert answer.status_code == 200, answer.text
    return [choice["text"] for choice in answer.json()["choices"]]


def test_a_text_is_translated_over_every_protocol(client: TestClient, translate: Any) -> None:
    expected = translate(SOURCE, TARGET)
    assert expected != translate(TARGET, SOURCE)
    # Longer than the protocols' own defaults.
    assert expected != translate(SOURCE, TARGET, max_new_tokens=20)
    assert complete(client, **LANGUAGES) == expected
    assert complete(client, src_lang=TARGET, tgt_lang=SOURCE) == translate(TARGET, SOURCE)
    assert complete(client, **LANGUAGES, max_tokens=5) == translate(SOURCE, TARGET, max_new_tokens=5)
    body = {"instances": [TEXT], "parameters": LANGUAGES}
    assert client.post("/v1/models/nllb:predict", json=body).json() == {"predictions": expected}
    body = {"text_input": TEXT, "parameters": LANGUAGES}
    assert client.post("/v2/models/nllb/generate", json=body).json()["text_output"] == expected[0]
    inputs = [{"name": "input-0", "datatype": "BYTES", "shape": [1], "data": [TEXT]}]
    answer = client.post("/v2/models/nllb/infer", json={"inputs": inputs, "parameters": LANGUAGES})
    assert answer.json()["outputs"][0]["data"] == expected


def test_beams_that_are_asked_for_are_choices(client: TestClient) -> None:
    asked = {"model": "nllb", "prompt": TEXT, **LANGUAGES, "use_beam_search": True, "n": 3, "max_tokens": 8}
    answer = client.post("/v1/completions", json={**asked, "return_token_ids": True, "logprobs": 1}).json()
    assert len({tuple(choice["token_ids"]) for choice in answer["choices"]}) == 3
    scores = [sum(choice["logprobs"]["token_logprobs"]) / len(choice["token_ids"]) for choice in answer["choices"]]
    assert scores == sorted(scores, reverse=True)
    assert complete(client, **asked) == [choice["text"] for choice in answer["choices"]]


@pytest.mark.parametrize("name", ["src_lang", "tgt_lang"])
def test_an_unknown_language_is_the_callers_error(name: str, client: TestClient) -> None:
    message = f"{name} is 'fr', which is none of the model's languages: ace_Arab, "
    answer = client.post("/v1/completions", json={"model": "nllb", "prompt": TEXT, **LANGUAGES, name: "fr"})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    body = {"instances": [TEXT], "parameters": {name: "fr"}}
    answer = client.post("/v1/models/nllb:predict", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]
