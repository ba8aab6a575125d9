"""Generated texts against `generate()`: whole answers with details, streams, and what parameters mean."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from protocol.huggingface.generation_requests import GenerateParameters
from tests.conftest import GeneratorFolder, Serve
from tests.generated import PROMPTS, copy_with_defaults, generate, load

PROMPT = PROMPTS[0]
Json = dict[str, Any]


@pytest.fixture(scope="module")
def folder(generator_folder: GeneratorFolder) -> Path:
    return generator_folder("llama")


@pytest.fixture(scope="module")
def client(folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=folder, backend="huggingface").client


@pytest.fixture(scope="module")
def sequences(generator_folder: GeneratorFolder, serve: Serve) -> TestClient:
    return serve(model_dir=generator_folder("t5"), max_length=64).client


@cache
def stock(folder: Path) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), load(folder)


def expect(folder: Path, prompt: str, **settings: Any) -> str:
    """The text that `generate()` makes, greedily."""
    tokenizer, model = stock(folder)
    [ids] = generate(model, tokenizer(prompt).input_ids, do_sample=False, **settings)
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def post(client: TestClient, inputs: Any, path: str = "/", **parameters: Any) -> Any:
    response = client.post(path, json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


def stream(client: TestClient, inputs: str, **parameters: Any) -> list[Json]:
    response = client.post("/", json={"inputs": inputs, "stream": True, "parameters": parameters})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_text_is_continued_greedily(prompt: str, client: TestClient, folder: Path) -> None:
    expected = expect(folder, prompt, max_new_tokens=7)
    assert post(client, prompt, max_new_tokens=7) == [{"generated_text": expected}]
    # As in Text Generation Inference: without `do_sample` a temperature of 1 is none, and 0 is greedy here.
    for greedy in (
        {"temperature": 1.0},
        {"do_sample": False},
        {"do_sample": True, "temperature": 0},
        {"top_p": 1.0, "top_k": 0},
    ):
        assert post(client, prompt, max_new_tokens=7, **greedy) == [{"generated_text": expected}]
    assert post(client, prompt, max_new_tokens=7, return_full_text=True) == [{"generated_text": prompt + expected}]


def test_without_a_limit_the_context_is_filled(client: TestClient, folder: Path) -> None:
    [answer] = post(client, PROMPT, details=True)
    tokenizer, _ = stock(folder)
    assert answer["generated_text"] == expect(folder, PROMPT, max_length=64)
    length = len(tokenizer(PROMPT).input_ids)
    assert answer["details"]["generated_tokens"] <= 64 - length
    assert (answer["details"]["finish_reason"] == "length") == (answer["details"]["generated_tokens"] == 64 - length)


def test_batches_are_nested_as_in_the_pipeline(client: TestClient, sequences: TestClient, folder: Path) -> None:
    texts = [expect(folder, prompt, max_new_tokens=4) for prompt in PROMPTS]
    assert post(client, list(PROMPTS), max_new_tokens=4) == [[{"generated_text": text}] for text in texts]
    summaries = post(sequences, list(PROMPTS), "/pipeline/summarization")
    assert [[*each] for each in summaries] == [["summary_text"]] * len(PROMPTS)


def test_details_have_the_model_s_log_probabilities(client: TestClient, folder: Path) -> None:
    asked: Json = {"details": True, "decoder_input_details": True, "top_n_tokens": 3, "seed": 7, "max_new_tokens": 4}
    [answer] = post(client, PROMPT, **asked)
    tokenizer, model = stock(folder)
    ids = tokenizer(PROMPT).input_ids
    [output] = generate(model, ids, do_sample=False, max_new_tokens=4)
    with torch.inference_mode():
        logprobs = model(torch.tensor([[*ids, *output]])).logits[0].log_softmax(-1)
    details = answer["details"]
    assert details["seed"] == 7
    assert details["generated_tokens"] == len(output)
    first, *prefill = details["prefill"]
    assert first == {"id": ids[0], "text": tokenizer.decode(ids[:1]), "logprob": None}
    assert [token["id"] for token in prefill] == ids[1:]
    for position, token in enumerate([*prefill, *details["tokens"]]):
        assert token["logprob"] == pytest.approx(logprobs[position, token["id"]].item(), abs=1e-4)
    assert [token["id"] for token in details["tokens"]] == output
    assert [token["special"] for token in details["tokens"]] == [token in tokenizer.all_special_ids for token in output]
    for position, tops in enumerate(details["top_tokens"], len(ids) - 1):
        values, best = logprobs[position].topk(3)
        assert [top["id"] for top in tops] == best.tolist()
        assert [top["logprob"] for top in tops] == pytest.approx(values.tolist(), abs=1e-4)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("more", [{}, {"do_sample": True, "seed": 3}, {"return_full_text": True}, {"truncate": 2}])
def test_the_tokens_of_a_stream_add_up_to_the_answer(prompt: str, more: Json, client: TestClient) -> None:
    asked = {"max_new_tokens": 30, "details": True, **more}
    [whole] = post(client, prompt, **asked)
    events = stream(client, prompt, **asked)
    last = events[-1]
    start = prompt if more.get("return_full_text") else ""
    assert (
        start + "".join(event["token"]["text"] for event in events) == last["generated_text"] == whole["generated_text"]
    )
    assert [event["index"] for event in events] == list(range(1, len(events) + 1))
    assert [event["token"]["id"] for event in events] == [token["id"] for token in whole["details"]["tokens"]]
    assert all(event["generated_text"] is event["details"] is None for event in events[:-1])
    shared = {name: whole["details"][name] for name in ("finish_reason", "generated_tokens", "seed")}
    assert last["details"].items() >= shared.items()


def test_a_stop_string_is_part_of_the_text(client: TestClient, folder: Path) -> None:
    expected = expect(folder, PROMPT, max_new_tokens=20)
    stop = expected[3:5]
    text = expected[: expected.index(stop) + len(stop)]
    [answer] = post(client, PROMPT, max_new_tokens=20, stop=[stop], details=True)
    assert (answer["generated_text"], answer["details"]["finish_reason"]) == (text, "stop_sequence")
    [*_, last] = stream(client, PROMPT, max_new_tokens=20, stop=[stop], details=True)
    assert (last["generated_text"], last["details"]["finish_reason"]) == (text, "stop_sequence")


def test_the_best_of_several_outputs(client: TestClient) -> None:
    [answer] = post(client, PROMPT, max_new_tokens=8, best_of=4, do_sample=True, seed=1, details=True)
    others = answer["details"]["best_of_sequences"]
    assert len(others) == 3
    means = [
        sum(token["logprob"] for token in each["tokens"]) / each["generated_tokens"]
        for each in (answer["details"], *others)
    ]
    assert means == sorted(means, reverse=True)
    assert len({answer["generated_text"], *(other["generated_text"] for other in others)}) > 1


def test_a_prompt_is_truncated_on_the_left(client: TestClient, folder: Path) -> None:
    tokenizer, model = stock(folder)
    tokenizer.truncation_side = "left"
    ids = tokenizer(PROMPTS[1], truncation=True, max_length=6).input_ids
    [output] = generate(model, ids, do_sample=False, max_new_tokens=5)
    [answer] = post(client, PROMPTS[1], max_new_tokens=5, truncate=6, details=True, decoder_input_details=True)
    assert answer["generated_text"] == tokenizer.decode(output, skip_special_tokens=True)
    assert [token["id"] for token in answer["details"]["prefill"]] == ids


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        ({"type": "regex", "value": "[0-9]{3}"}, r"\d{3}"),
        ({"type": "json", "value": {"type": "integer", "minimum": 10, "maximum": 99}}, r"\d\d"),
        ({"type": "json_object", "value": '{"enum": ["a", "b"]}'}, '"[ab]"'),
        ({"type": "json_schema", "value": {"schema": {"const": 7}}}, "7"),
    ],
)
def test_grammars(grammar: Json, pattern: str, client: TestClient) -> None:
    [answer] = post(client, PROMPT, max_new_tokens=20, grammar=grammar)
    assert re.fullmatch(rf"\s*{pattern}\s*", answer["generated_text"])


def test_sampling_depends_on_the_seed(client: TestClient) -> None:
    def sample(**more: Any) -> str:
        return str(post(client, PROMPT, max_new_tokens=12, seed=5, **more)[0]["generated_text"])

    assert sample(do_sample=True) == sample(do_sample=True) != sample()
    assert sample(typical_p=0.2) != sample(do_sample=True)
    assert len({sample(temperature=3.5), sample(do_sample=True), sample(do_sample=True, repetition_penalty=5.0)}) == 3


@pytest.mark.parametrize(
    ("given", "samples"),
    [
        ({}, False), ({"do_sample": False}, False), ({"do_sample": True}, True), ({"temperature": 1.0}, False),
        ({"temperature": 0.7}, True), ({"temperature": 0.7, "do_sample": False}, True), ({"top_k": 0}, False),
        ({"top_k": 5}, True), ({"top_p": 1.0}, False), ({"top_p": 0.5}, True), ({"seed": 7}, False),
        ({"typical_p": 1.0}, False), ({"typical_p": 0.9}, True),
    ],
)  # fmt: skip
def test_what_samples(given: Json, samples: bool) -> None:
    """By the rules of that server: https://github.com/huggingface/text-generation-inference (NextTokenChooser)."""
    parameters = GenerateParameters(**given)
    assert parameters.samples is samples
    assert (parameters.sampling_fields().temperature == 0) is not samples


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"parameters": {"best_of": 2}}, "best_of needs do_sample: all outputs would be the same"),
        ({"parameters": {"best_of": 2, "do_sample": True}, "stream": True}, "best_of is not supported with stream"),
        ({"parameters": {"decoder_input_details": True}, "stream": True}, "decoder_input_details is not supported with stream"),
        ({"inputs": ["a"], "stream": True}, "stream needs a single text in inputs"),
        ({"inputs": []}, "the body is not as expected: Expected `array` of length >= 1 - at `$.inputs`"),
        ({"parameters": {"max_new_tokens": 0}}, "the body is not as expected: Expected `int` >= 1 - at `$.parameters.max_new_tokens`"),
        ({"parameters": {"max_new_tokens": 100}}, "This model's maximum context length is 64 tokens, but"),
        ({"parameters": {"grammar": {"type": "regex", "value": {}}}}, "the value of grammar must be a JSON schema if"),
        ({"parameters": {"stop": [""]}}, "the body is not as expected: Expected `str` of length >= 1 - at `$.parameters.stop[0]`"),
    ],
)  # fmt: skip
def test_what_is_refused(body: Json, message: str, client: TestClient) -> None:
    response = client.post("/", json={"inputs": PROMPT, **body})
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)
    assert response.json()["error_type"] == "validation"


@pytest.mark.parametrize(
    ("parameters", "limit"),
    [({"stop": ["a", "b", "c"]}, "max_stop_strings"), ({"best_of": 5, "do_sample": True}, "max_choices")],
)
def test_limits(parameters: Json, limit: str, folder: Path, serve: Serve) -> None:
    client = serve(
        model_dir=folder, backend="huggingface", max_stop_strings=2, max_choices=4, max_client_batch_size=3
    ).client
    for body in ({"inputs": PROMPT, "parameters": parameters}, {"inputs": ["a"] * 4}):
        response = client.post("/", json=body)
        assert response.status_code == 413
        assert f"--{limit if 'parameters' in body else 'max_client_batch_size'} allows" in response.json()["error"]


def test_models_that_translate_or_summarize(sequences: TestClient, generator_folder: GeneratorFolder) -> None:
    """They have no prompt to continue: what is not set is as the model's files say."""
    folder = generator_folder("t5")
    text = expect(folder, PROMPT, max_new_tokens=6)
    names = ("generated_text", "summary_text", "translation_text")
    assert post(sequences, PROMPT, max_new_tokens=6) == [dict.fromkeys(names, text)]
    for task, name in zip(("text2text-generation", "summarization", "translation"), names, strict=True):
        assert post(sequences, PROMPT, f"/pipeline/{task}", generate_parameters={"max_length": 7}) == [{name: text}]
    minimum: Json = {"min_length": 30, "max_length": 40}
    assert post(sequences, PROMPT, **minimum)[0]["summary_text"] == expect(folder, PROMPT, **minimum)


def test_defaults_of_the_model_s_files(generator_folder: GeneratorFolder, serve: Serve, tmp_path: Path) -> None:
    folder = copy_with_defaults(generator_folder("t5"), tmp_path / "beams", num_beams=3, max_length=25)
    client = serve(model_dir=folder).client
    tokenizer, model = stock(folder)
    [ids] = generate(model, tokenizer(PROMPT).input_ids)
    assert post(client, PROMPT)[0]["summary_text"] == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("truncation", ["longest_first", "only_first", True, "do_not_truncate", False, None])
def test_truncation(truncation: Any, sequences: TestClient) -> None:
    body = {"inputs": "value " * 100, "parameters": {"truncation": truncation, "max_new_tokens": 2}}
    assert sequences.post("/", json=body).status_code == (
        400 if truncation in (None, False, "do_not_truncate") else 200
    )
