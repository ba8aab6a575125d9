"""huggingface_hub's clients, unchanged, against started servers of models that generate, on both engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    AsyncInferenceClient,
    ChatCompletionOutput,
    InferenceClient,
    TextGenerationOutput,
    TextGenerationStreamOutput,
    constants,
)
from huggingface_hub.errors import BadRequestError, ValidationError
from transformers import AutoTokenizer

from tests.conftest import GeneratorFolder
from tests.generated import generate, load
from tests.reference import Reference
from tests.servers import ServerProcess, serve

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
QUESTION = "What is the capital of France?"
MESSAGES = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "note_city", "description": "Notes a city.", "parameters": SCHEMA}}
VLLM = ["kv_cache_memory_bytes=256M", "max_length=512", "enable_auto_tool_choice=true", "tool_call_parser=hermes"]
WORDS = {"huggingface": [], "vllm": VLLM}

# Calls a method of a client; an iterator's items are a list.
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client calls nothing while the tests are offline, which they are for its downloads."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module", params=WORDS)
def server(
    request: pytest.FixtureRequest, smollm: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    home, backend = tmp_path_factory.mktemp("home"), request.param
    words = [f"model_dir={smollm}", "model_name=smollm", "dtype=float32", f"backend={backend}", *WORDS[backend]]
    with serve(home, *words, seconds=300) as server:
        yield server


@pytest.fixture(scope="module")
def translator(generator_folder: GeneratorFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(tmp_path_factory.mktemp("translator"), f"model_dir={generator_folder('t5')}") as server:
        yield server


@pytest.fixture(scope="module")
def reference(smollm: Path) -> Reference:
    return Reference(smollm)


@pytest.fixture(params=["InferenceClient", "AsyncInferenceClient"])
def call(request: pytest.FixtureRequest, server: ServerProcess) -> Call:
    """`call("text_generation", prompt, stream=True)`."""
    return make_call(request.param, server.url)


def make_call(kind: str, url: str) -> Call:
    async def call_later(method: str, *inputs: Any, **arguments: Any) -> Any:
        async with AsyncInferenceClient(url) as client:
            answer = await getattr(client, method)(*inputs, **arguments)
            return [item async for item in answer] if arguments.get("stream") else answer

    def call_method(method: str, *inputs: Any, **arguments: Any) -> Any:
        if kind == "AsyncInferenceClient":
            return asyncio.run(call_later(method, *inputs, **arguments))
        with InferenceClient(url) as client:
            answer = getattr(client, method)(*inputs, **arguments)
            return list(answer) if arguments.get("stream") else answer

    return call_method


def test_text_generation(call: Call, reference: Reference) -> None:
    expected = reference.complete(PROMPT, 6)
    assert call("text_generation", PROMPT, max_new_tokens=6) == expected
    assert call("text_generation", PROMPT, max_new_tokens=6, return_full_text=True) == PROMPT + expected
    assert "".join(call("text_generation", PROMPT, max_new_tokens=6, stream=True)) == expected


def test_details(call: Call, reference: Reference) -> None:
    asked = {"max_new_tokens": 6, "details": True, "top_n_tokens": 2, "seed": 3}
    found = call("text_generation", PROMPT, decoder_input_details=True, **asked)
    assert isinstance(found, TextGenerationOutput)
    assert found.details is not None
    details, expected = found.details, reference.complete(PROMPT, 6)
    assert (found.generated_text, details.finish_reason, details.generated_tokens) == (expected, "length", 6)
    assert details.seed == 3
    assert "".join(token.text for token in details.tokens) == expected
    total, is_greedy = reference.score(PROMPT, expected)
    assert is_greedy
    assert sum(token.logprob for token in details.tokens) == pytest.approx(total, abs=1e-3)
    assert [token.special for token in details.tokens] == [False] * 6
    for token, tops in zip(details.tokens, details.top_tokens or [], strict=True):
        # The client parses no lists of lists.
        first_top, second_top = tops
        assert (first_top["id"], first_top["logprob"]) == (token.id, pytest.approx(token.logprob, abs=1e-4))
        assert second_top["logprob"] <= first_top["logprob"]
    first, *prefill = details.prefill
    # The client's type says that it is a number.
    assert str(first.logprob) == "None"
    assert "".join(token.text for token in (first, *prefill)) == PROMPT
    total, _ = reference.score("The", PROMPT.removeprefix("The"))
    assert sum(token.logprob for token in prefill) == pytest.approx(total, abs=1e-3)
    *events, last = call("text_generation", PROMPT, stream=True, **asked)
    assert all(isinstance(event, TextGenerationStreamOutput) for event in (*events, last))
    assert [event.token.id for event in (*events, last)] == [token.id for token in details.tokens]
    assert [event.index for event in (*events, last)] == [1, 2, 3, 4, 5, 6]
    assert all(event.generated_text is None and event.details is None for event in events)
    assert last.generated_text == expected
    assert last.details is not None
    assert (last.details.finish_reason, last.details.generated_tokens, last.details.input_length) == ("length", 6, 5)


def test_an_end_token_has_no_text_in_a_stream(call: Call, reference: Reference) -> None:
    prompt = reference.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, tokenize=False)
    whole = call("text_generation", prompt, max_new_tokens=40, details=True)
    assert whole.details.finish_reason == "eos_token"
    assert whole.generated_text == reference.chat(QUESTION, 40)
    assert whole.details.tokens[-1].special
    assert whole.details.tokens[-1].text == "<|im_end|>"
    assert "".join(call("text_generation", prompt, max_new_tokens=40, stream=True)) == whole.generated_text


def test_typical_sampling(call: Call, request: pytest.FixtureRequest) -> None:
    """vLLM has none, and a mass of 1 is none."""
    assert call("text_generation", PROMPT, max_new_tokens=2, typical_p=1.0)
    if "vllm" in request.node.name:
        with pytest.raises(ValidationError, match="typical_p is not supported where vLLM runs the model"):
            call("text_generation", PROMPT, max_new_tokens=2, typical_p=0.9)
    else:
        assert call("text_generation", PROMPT, max_new_tokens=2, typical_p=0.9)


def test_every_argument_of_text_generation(call: Call, reference: Reference) -> None:
    neutral = {
        "adapter_id": None, "best_of": 1, "decoder_input_details": False, "details": False, "do_sample": False,
        "frequency_penalty": 0.0, "repetition_penalty": 1.0, "return_full_text": False, "seed": 1, "temperature": None,
        "top_k": None, "top_n_tokens": None, "top_p": None, "truncate": 100, "typical_p": None, "watermark": False,
    }  # fmt: skip
    expected = reference.complete(PROMPT, 6)
    assert call("text_generation", PROMPT, max_new_tokens=6, stop=["nowhere"], **neutral) == expected
    stopped = call("text_generation", PROMPT, max_new_tokens=6, stop=[expected[2:4]], details=True)
    assert (stopped.generated_text, stopped.details.finish_reason) == (expected[:4], "stop_sequence")
    sampling = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "seed": 5, "do_sample": True, "frequency_penalty": 0.5}
    sampled = [call("text_generation", PROMPT, max_new_tokens=12, repetition_penalty=1.2, **sampling) for _ in range(2)]
    assert sampled[0] == sampled[1] != reference.complete(PROMPT, 12)
    best = call("text_generation", PROMPT, max_new_tokens=4, best_of=2, do_sample=True, details=True)
    assert len(best.details.best_of_sequences) == 1
    grammar = {"type": "json", "value": SCHEMA}
    assert json.loads(call("text_generation", QUESTION, max_new_tokens=30, grammar=grammar))["city"] in (
        "Paris",
        "Rome",
    )
    # The last tokens of the prompt.
    ids = reference.tokenizer(PROMPT)["input_ids"]
    kept = reference.tokenizer.decode(ids[-2:])
    assert call("text_generation", PROMPT, max_new_tokens=6, truncate=2) == reference.complete(kept, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"watermark": True}, "watermark in parameters is not supported here"),
        ({"adapter_id": "a"}, "adapter_id in parameters is not supported here"),
        ({"best_of": 2}, "best_of needs do_sample"),
        ({"max_new_tokens": 10_000}, "This model's maximum context length is"),
        ({"top_n_tokens": 100}, "Expected `int` <= 20 - at `\\$.parameters.top_n_tokens`"),
    ],
)
def test_errors_of_text_generation(call: Call, arguments: dict[str, Any], message: str) -> None:
    """The client makes errors of its own of their kinds."""
    with pytest.raises(ValidationError, match=message):
        call("text_generation", PROMPT, **{"max_new_tokens": 2, **arguments})


@pytest.mark.parametrize("path", ["", "/v1", "/v1/chat/completions", "/models/smollm"])
def test_chat_completion(path: str, server: ServerProcess, reference: Reference) -> None:
    expected = reference.chat(QUESTION, 8)
    call = make_call("InferenceClient", server.url + path)
    found = call("chat_completion", MESSAGES, max_tokens=8, temperature=0)
    assert isinstance(found, ChatCompletionOutput)
    assert (found.choices[0].message.role, found.choices[0].message.content) == ("assistant", expected)
    assert (found.model, found.usage.completion_tokens) == ("smollm", 8)
    chunks = call(
        "chat_completion", MESSAGES, max_tokens=8, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.total_tokens == found.usage.total_tokens
    named = call("chat_completion", MESSAGES, model="smollm", max_tokens=8, temperature=0)
    assert named.choices[0].message.content == expected


def test_chat_arguments(call: Call, reference: Reference) -> None:
    asked = {"max_tokens": 8, "temperature": 0}
    # vLLM refuses several greedy outputs; one token is all that top_k leaves.
    found = call(
        "chat_completion", MESSAGES, frequency_penalty=0.0, presence_penalty=0.0, logprobs=True, top_logprobs=2, n=2,
        seed=1, stop=["nowhere"], top_p=1.0, extra_body={"top_k": 1}, **{**asked, "temperature": 1.0},
    )  # fmt: skip
    assert {choice.message.content for choice in found.choices} == {reference.chat(QUESTION, 8)}
    entries = found.choices[0].logprobs.content
    # The end token is one too.
    assert "".join(entry.token for entry in entries).removesuffix("<|im_end|>") == reference.chat(QUESTION, 8)
    assert {len(entry.top_logprobs) for entry in entries} == {2}
    formats: list[dict[str, Any]] = [
        {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        {"type": "json", "value": SCHEMA},
        {"type": "json_object", "value": SCHEMA},
    ]
    for each in formats:
        found = call("chat_completion", MESSAGES, response_format=each, **{**asked, "max_tokens": 40})
        assert json.loads(found.choices[0].message.content).keys() == {"city"}
    found = call("chat_completion", MESSAGES, response_format={"type": "regex", "value": "[0-9]{3}"}, **asked)
    assert found.choices[0].message.content.strip().isdigit()
    for choice in ({"function": {"name": "note_city"}}, {"type": "function", "function": {"name": "note_city"}}):
        found = call("chat_completion", MESSAGES, tools=[TOOL], tool_choice=choice, **{**asked, "max_tokens": 100})
        [called] = found.choices[0].message.tool_calls
        # vLLM does not hold the arguments to the schema.
        assert called.function.name == "note_city"


def test_a_tool_s_prompt_is_refused(call: Call) -> None:
    with pytest.raises(BadRequestError, match="tool_prompt"):
        call("chat_completion", MESSAGES, tools=[TOOL], tool_prompt="Use them well.", max_tokens=4)


def test_translation(translator: ServerProcess, generator_folder: GeneratorFolder) -> None:
    folder = generator_folder("t5")
    ids = AutoTokenizer.from_pretrained(folder)(QUESTION).input_ids
    [output] = generate(load(folder), ids, do_sample=False, max_new_tokens=6)
    text = AutoTokenizer.from_pretrained(folder).decode(output, skip_special_tokens=True)
    for kind in ("InferenceClient", "AsyncInferenceClient"):
        call = make_call(kind, translator.url)
        parameters = {
            "generate_parameters": {"max_new_tokens": 6},
            "clean_up_tokenization_spaces": False,
            "truncation": "do_not_truncate",
        }
        assert call("translation", QUESTION, **parameters).translation_text == text
        assert call("summarization", QUESTION, **parameters).summary_text == text
        assert call("text_generation", QUESTION, max_new_tokens=6) == text
        with pytest.raises(BadRequestError, match="src_lang"):
            call("translation", QUESTION, src_lang="en", tgt_lang="fr")
