"""The details of `generate` and `generate_stream`, against `generate()` and the protocol's own document."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from starlette.testclient import TestClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import GeneratorFolder, Serve
from tests.servers import ROOT

# The protocol's owners' document, where it is beside the project.
DOCUMENT = ROOT.parent / "shared" / "data" / "generate_rest.yaml"
TEXT = "Return the value"
GREEDY = {"temperature": 0, "max_tokens": 5}


@pytest.fixture(scope="module")
def folder(generator_folder: GeneratorFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for many tokens: its positions are rotated, not learned."""
    folder = tmp_path_factory.mktemp("long") / "llama"
    shutil.copytree(generator_folder("llama"), folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    return folder


@pytest.fixture(scope="module")
def client(folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=folder, backend="huggingface", model_name="llama").client


def generate(client: TestClient, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    body = {"text_input": TEXT, "parameters": parameters, **more}
    response = client.post("/v2/models/llama/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def stream(client: TestClient, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    body = {"text_input": TEXT, "parameters": parameters}
    text = client.post("/v2/models/llama/generate_stream", json=body).text
    return [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]


def test_log_probabilities_are_those_of_the_model(client: TestClient, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer(TEXT, return_tensors="pt")
    generated = model.generate(
        **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    ids = generated.sequences[0, inputs.input_ids.shape[1] :].tolist()
    answer = generate(client, {**GREEDY, "details": True})
    tokens = answer["details"]["logprobs"]
    assert [token["id"] for token in tokens] == ids
    expected = [logits[0].log_softmax(-1)[token].item() for logits, token in zip(generated.logits, ids, strict=True)]
    assert [token["logprob"] for token in tokens] == pytest.approx(expected, abs=1e-4)
    assert [token["special"] for token in tokens] == [token in tokenizer.all_special_ids for token in ids]
    assert "".join(token["text"] for token in tokens if not token["special"]) == answer["text_output"]
    assert answer["details"]["finish_reason"] == "length"
    plain = generate(client, GREEDY)
    assert plain == {name: value for name, value in answer.items() if name != "details"}


def test_the_last_event_of_a_stream_has_them(client: TestClient) -> None:
    whole = generate(client, {**GREEDY, "details": True})
    *events, last = stream(client, {**GREEDY, "details": True})
    assert not any("details" in event for event in events)
    assert "".join(event["text_output"] for event in [*events, last]) == whole["text_output"]
    assert last["details"] == {**whole["details"], "token": whole["details"]["logprobs"][-1]}
    assert not any("details" in event for event in stream(client, GREEDY))


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"max_tokens": 2}, "length"),
        ({"stop_token_ids": "first"}, "eos_token"),
        ({"stop": "text"}, "stop_sequence"),
        ({"eos": "first"}, "eos_token"),
    ],
)
def test_finish_reasons(
    parameters: dict[str, Any], reason: str, client: TestClient, folder: Path, serve: Serve, tmp_path: Path
) -> None:
    first = generate(client, {**GREEDY, "details": True})
    token = first["details"]["logprobs"][0]["id"]
    match parameters:
        case {"stop_token_ids": _}:
            parameters = {"stop_token_ids": [token]}
        case {"stop": _}:
            parameters = {"stop": [first["text_output"][:3]]}
        case {"eos": _}:
            model = AutoModelForCausalLM.from_pretrained(folder)
            model.generation_config.eos_token_id = token
            model.save_pretrained(tmp_path)
            AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
            parameters = {}
            client = serve(model_dir=tmp_path, backend="huggingface", model_name="llama").client
    asked = {**GREEDY, **parameters, "details": True}
    assert generate(client, asked)["details"]["finish_reason"] == reason
    assert stream(client, asked)[-1]["details"]["finish_reason"] == reason


@pytest.mark.parametrize(
    ("body", "has_details"),
    [
        ({"details": True}, True),
        ({"parameters": {"details": None}, "details": True}, True),
        ({"parameters": {"details": False}, "details": True}, False),
        ({"parameters": {"details": True}, "details": False}, True),
        ({"parameters": {"max_tokens": 1}}, False),
    ],
)
def test_places_of_the_parameter(body: dict[str, Any], has_details: bool, client: TestClient) -> None:
    """As for all parameters, `parameters` overrides the fields of the body."""
    answer = client.post("/v2/models/llama/generate", json={"text_input": TEXT, **body}).json()
    assert ("details" in answer) == has_details


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize("body", [{"parameters": {"details": 1}}, {"details": "true"}])
def test_a_wrong_value(verb: str, body: dict[str, Any], client: TestClient) -> None:
    response = client.post(f"/v2/models/llama/{verb}", json={"text_input": TEXT, **body})
    assert (response.status_code, response.json()) == (400, {"error": "the parameter details must be true or false"})


def test_many_tokens(client: TestClient) -> None:
    """More than are rendered on the event loop."""
    answer = generate(client, {"max_tokens": 300, "min_tokens": 300, "seed": 1, "temperature": 1, "details": True})
    assert len(answer["details"]["logprobs"]) == 300


@pytest.mark.parametrize("parameters", [{}, {"temperature": 1, "seed": 1}])
def test_an_encoder_decoder(parameters: dict[str, Any], generator_folder: GeneratorFolder, serve: Serve) -> None:
    client = serve(model_dir=generator_folder("t5"), backend="huggingface", model_name="llama").client
    answer = generate(client, {"max_tokens": 5, **parameters, "details": True})
    assert 0 < len(answer["details"]["logprobs"]) <= 5
    assert answer["text_output"] == generate(client, {"max_tokens": 5, **parameters})["text_output"]


@pytest.mark.skipif(not DOCUMENT.exists(), reason="the Open Inference Protocol's document is not beside the project")
@pytest.mark.parametrize("parameters", [{}, {"details": True}, {"details": True, "stop": ["a", "e"], "max_tokens": 50}])
def test_answers_are_as_the_protocols_document_says(parameters: dict[str, Any], client: TestClient) -> None:
    document = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))

    def check(name: str, value: Any) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.validate(value, schema, jsonschema.Draft202012Validator)

    asked = {**GREEDY, **parameters}
    check("GenerateRequest", {"text_input": TEXT, "parameters": asked})
    check("GenerateResponse", generate(client, asked))
    for event in stream(client, asked):
        check("GenerateStreamResponse", event)
    check("GenerateErrorResponse", client.post("/v2/models/llama/generate", json={}).json())
