"""Completions where vLLM does not run the model, by OpenAI's client and as they are on the wire."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import orjson
import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from protocol.openai.logprobs import chat_logprobs, completion_logprobs
from runners.core.admission import Admitted
from runners.core.generation import Sampling, TokenLogprob, TokenLogprobs
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import Serve
from tests.protocol.openai.replies import read_events

PROMPT = "Return the"
GREEDY: Any = {"model": "llama", "temperature": 0}


@pytest.mark.parametrize("prompt", [PROMPT, [5, 6, 7]])
def test_echo_has_the_prompt_and_its_log_probabilities(client: openai.OpenAI, chat_folder: Path, prompt: Any) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(chat_folder)
    ids = tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    [choice] = client.completions.create(prompt=prompt, max_tokens=2, echo=True, logprobs=1, **GREEDY).choices
    plain = client.completions.create(prompt=prompt, max_tokens=2, **GREEDY).choices[0].text
    assert choice.text == text + plain
    found = choice.logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.text_offset is not None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(ids) + 2
    assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None)
    for token, logprob, top in list(zip(found.tokens, found.token_logprobs, found.top_logprobs, strict=True))[1:]:
        assert top[token] == logprob
        assert 1 <= len(top) <= 2
    outputs = [choice.text[offset:] for offset in found.text_offset[-2:]]
    assert outputs == [plain, plain[len(found.tokens[-2]) :]]


def test_no_token_is_generated_where_none_is_asked_for(client: openai.OpenAI) -> None:
    answer = client.completions.create(prompt=[5, 6, 7], max_tokens=0, echo=True, logprobs=1, **GREEDY)
    [choice] = answer.choices
    assert (choice.text, choice.finish_reason) == ('!"#', "length")
    assert choice.logprobs is not None
    assert choice.logprobs.text_offset == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 0
    parts = list(client.completions.create(prompt=[5, 6], max_tokens=0, echo=True, stream=True, **GREEDY))
    assert [part.choices[0].text for part in parts] == ['!"']


def test_log_probabilities_of_the_prompt_as_vllm_has_them(http: TestClient) -> None:
    body = {"prompt": [5, 6], "max_tokens": 1, "prompt_logprobs": 2, "return_token_ids": True, **GREEDY}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    first, second = choice["prompt_logprobs"]
    assert first is None
    assert {*second["6"]} == {"logprob", "rank", "decoded_token"}
    assert {entry["rank"] for entry in second.values()} >= {1, 2}
    assert choice["prompt_token_ids"] == [5, 6]
    assert len(choice["token_ids"]) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_the_choices_of_a_prompt_share_its_log_probabilities(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The model computes them once; each choice tells them, also where they are rendered in a thread."""
    asked: list[int | None] = []
    generate = TransformersEngine.generate

    def record(engine: TransformersEngine, prompt: Sequence[int], sampling: Sampling, admitted: Admitted) -> Any:
        asked.append(sampling.prompt_logprobs)
        return generate(engine, prompt, sampling, admitted)

    monkeypatch.setattr(TransformersEngine, "generate", record)
    body = {"prompt": [[5, 6] * 200, [7, 8]], "n": 3, "echo": True, "logprobs": 2, "max_tokens": 1, "stream": stream}
    response = http.post("/v1/completions", json=body)
    choices = [each["choices"][0] for each in read_events(response.text)] if stream else response.json()["choices"]
    assert asked == [2, None, None] * 2
    for start, tokens in ((0, 400), (3, 2)):
        told = [choice["logprobs"] for choice in choices if start <= choice["index"] < start + 3]
        of_prompt = [{name: values[:tokens] for name, values in each.items()} for each in told]
        assert len(of_prompt) == 3
        assert of_prompt[0] == of_prompt[1] == of_prompt[2]
        assert len(told[0]["top_logprobs"]) == tokens + 1


def test_a_stream_is_the_answer_in_parts(http: TestClient) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "n": 2, "seed": 3, "logprobs": 1, "echo": True, "model": "llama"}
    whole = http.post("/v1/completions", json=body).json()
    options = {"include_usage": True, "continuous_usage_stats": True}
    parts = read_events(http.post("/v1/completions", json={**body, "stream": True, "stream_options": options}).text)
    assert parts.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [part["choices"][0] for part in parts if part["choices"][0]["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert [value for part in own for value in part["logprobs"][name]] == values
        assert own[-1]["finish_reason"] == choice["finish_reason"]
    assert [part["usage"]["prompt_tokens"] for part in parts] == [4] * len(parts)
    assert max(part["usage"]["completion_tokens"] for part in parts) == 6


def test_ids_instead_of_tokens_and_chosen_ones(http: TestClient) -> None:
    body = {
        "prompt": PROMPT, "max_tokens": 1, "logprobs": 5, "logprob_token_ids": [500], "allowed_token_ids": [42],
        "return_tokens_as_token_ids": True, **GREEDY,
    }  # fmt: skip
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["logprobs"]["tokens"] == ["token_id:42"]
    assert {*choice["logprobs"]["top_logprobs"][0]} == {"token_id:42", "token_id:500"}


@pytest.mark.parametrize(("side", "kept"), [("left", [7, 8]), ("right", [5, 6]), (None, [7, 8])])
def test_prompts_are_truncated(http: TestClient, side: str | None, kept: list[int]) -> None:
    body = {"prompt": [5, 6, 7, 8], "truncate_prompt_tokens": 2, "truncation_side": side, "return_token_ids": True}
    [choice] = http.post("/v1/completions", json={**body, **GREEDY}).json()["choices"]
    assert choice["prompt_token_ids"] == kept


@pytest.mark.parametrize("given", [{"include_stop_str_in_output": True}, {}])
def test_a_stop_string(http: TestClient, given: dict[str, Any]) -> None:
    text = http.post("/v1/completions", json={"prompt": PROMPT, **GREEDY}).json()["choices"][0]["text"]
    stop = text[5:8]
    body = {"prompt": PROMPT, "stop": stop, **GREEDY, **given}
    [choice] = http.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == text[: text.index(stop)] + (stop if given else "")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)


def test_beams_are_the_choices(http: TestClient) -> None:
    body = {
        "prompt": [PROMPT, PROMPT],
        "max_tokens": 5,
        "n": 2,
        "use_beam_search": True,
        "length_penalty": 0.5,
        **GREEDY,
    }
    answer = http.post("/v1/completions", json=body).json()
    first, second, *others = [choice["text"] for choice in answer["choices"]]
    assert first != second
    assert others == [first, second]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("fewer", [{"allowed_token_ids": [5], "max_tokens": 3}, {"echo": True, "max_tokens": 0}])
def test_a_search_may_find_fewer_than_there_are_choices(http: TestClient, fewer: dict[str, Any]) -> None:
    answer = http.post("/v1/completions", json={"prompt": PROMPT, "n": 2, "use_beam_search": True, **fewer}).json()
    assert [choice["index"] for choice in answer["choices"]] == [0]


@pytest.mark.parametrize("name", ["src_lang", "tgt_lang"])
def test_a_model_without_languages_refuses_them(http: TestClient, name: str) -> None:
    response = http.post("/v1/completions", json={"prompt": PROMPT, name: "deu_Latn"})
    assert response.status_code == 400, response.text


def test_the_id_of_the_request_is_in_the_answers(http: TestClient) -> None:
    body = {"prompt": PROMPT, "max_tokens": 1, "request_id": "mine", **GREEDY}
    assert http.post("/v1/completions", json=body).json()["id"] == "cmpl-mine"
    headers = {"x-request-id": "theirs"}
    assert http.post("/v1/completions", json=body, headers=headers).json()["id"] == "cmpl-theirs"


def test_cached_tokens_are_told_where_the_operator_says_so(chat_folder: Path, serve: Serve, http: TestClient) -> None:
    from runners.core.engine_arguments import EngineArgument

    engine = {"enable_prompt_tokens_details": EngineArgument("true", "the command line")}
    telling = serve(model_dir=chat_folder, backend="huggingface", engine=engine).client
    body = {"prompt": PROMPT, "max_tokens": 1}
    assert telling.post("/v1/completions", json=body).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "prompt_tokens_details" not in http.post("/v1/completions", json=body).json()["usage"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": ""}, "prompt", "prompt must not be empty"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "max_tokens must be at least 1, unless echo is true"),
        ({"prompt": "a", "best_of": 2}, "best_of", "best_of is not supported beyond n"),
        ({"prompt": "a", "suffix": "b"}, "suffix", "suffix is not supported here"),
        ({"prompt": "a", "logprobs": 21}, "logprobs", "the body is not as expected: Expected `int` <= 20"),
        ({"prompt": "a", "prompt_logprobs": -1}, "prompt_logprobs", "the body is not as expected: Expected `int` >= 0"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "prompt_logprobs is not supported"),
        ({"prompt": "a", "logprob_token_ids": [1]}, "logprob_token_ids", "logprob_token_ids needs logprobs"),
        ({"prompt": "a", "use_beam_search": True, "stream": True}, "use_beam_search", "use_beam_search is not supported"),
        ({"prompt": "a", "stream_options": {"include_usage": None}}, "stream_options", "stream_options needs stream"),
        ({"prompt": "a", "min_tokens": 5, "max_tokens": 3}, "min_tokens", "min_tokens is 5, but max_tokens is 3"),
        ({"prompt": "a", "allowed_token_ids": []}, "allowed_token_ids", "allowed_token_ids must not be empty"),
        ({"prompt": "a", "truncate_prompt_tokens": 5000}, "truncate_prompt_tokens", "truncate_prompt_tokens is 5000"),
        ({"prompt": "a", "structured_outputs": {}}, "structured_outputs", "structured_outputs must have exactly one of"),
        ({"prompt": "a", "structured_outputs": {"regex": "a", "json": {}}}, "structured_outputs", "structured_outputs must"),
        ({"prompt": "a", "structured_outputs": {"structural_tag": "a"}}, "structured_outputs",
         "structured_outputs.structural_tag is not supported here, only by OpenAI's API where vLLM runs the model"),
        ({"prompt": "a", "structured_outputs": {"json": "[1]"}}, "structured_outputs", "the schema of structured_outputs is"),
        ({"prompt": "a", "response_format": {"type": "json_schema"}}, "response_format", "response_format json_schema needs"),
        ({"prompt": "a", "stop": ["b" * 1025]}, "stop", "the body is not as expected: Expected `str` of length <= 1024"),
        ({"prompt": "a", "n": 128, "max_tokens": 400, "logprobs": 20}, "logprobs", "1075200 log probabilities are more than"),
        ({"prompt": [[5] * 500] * 8, "n": 128, "max_tokens": 1, "prompt_logprobs": 2}, "prompt_logprobs",
         "1536000 log probabilities are more than 1048576: ask for fewer choices, tokens or logprobs"),
        ({"prompt": "a", "guided_json": {}}, "guided_json", "guided_json is not supported here"),
    ],
)  # fmt: skip
def test_what_is_refused(http: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert (error["param"], error["code"], error["type"]) == (param, None, "BadRequestError")


def test_stream_options_that_ask_for_nothing_need_no_stream(http: TestClient) -> None:
    assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "stream_options": {}}).status_code == 200


def token(token_id: int, text: str, data: bytes) -> TokenLogprob:
    return TokenLogprob(token_id, text, data, -float(token_id), token_id)


def test_names_of_tokens_do_not_collide() -> None:
    """Halves of characters have their bytes for names; of two tokens with one text the second has its id."""
    entries = [
        TokenLogprobs(
            token(1, "\ufffd", b"\xe2\x80"), (token(2, "\ufffd", b"\x9c"), token(1, "\ufffd", b"\xe2\x80")), 0
        ),
        TokenLogprobs(token(3, "a", b"a"), (token(4, "a", b"a"), token(9999, "b", b"b")), 1),
    ]
    found = completion_logprobs(entries, as_ids=False, prompt_length=10, prompt_entries=0)
    assert found == {
        "tokens": ["bytes:\\xe2\\x80", "a"],
        "token_logprobs": [-1.0, -3.0],
        "top_logprobs": [
            {"bytes:\\xe2\\x80": -1.0, "bytes:\\x9c": -2.0},
            {"a": -3.0, "token_id:4": -4.0, "b": -9999.0},
        ],
        "text_offset": [10, 11],
    }
    [first, _] = json.loads(orjson.dumps(chat_logprobs(entries, as_ids=False)))["content"]
    assert (first["token"], first["bytes"]) == ("bytes:\\xe2\\x80", [0xE2, 0x80])


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": ["a"] * 513, "n": 2}, None, "1026 outputs, prompts times n, are more than the 1024 that --max_choices allows"),
        ({"prompt": "a" * (2**20 + 1)}, None, "1048577 characters of a prompt are more than the 1048576 that --max_text_characters"),
        ({"prompt": "a", "stop": ["b"] * 65}, "stop", "65 stop strings are more than the 64 that --max_stop_strings allows"),
        ({"prompt": "a", "bad_words": ["b"] * 65}, "bad_words", "65 bad_words are more than the 64 that --max_stop_strings"),
        ({"prompt": "a", "logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "1025 tokens in logit_bias are more"),
        ({"prompt": "a", "stop_token_ids": [1] * 1025}, "stop_token_ids", "1025 stop_token_ids are more than the 1024"),
    ],
)  # fmt: skip
def test_amounts_are_refused_before_work(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], param: str | None, message: str
) -> None:
    monkeypatch.setattr(TransformersEngine, "tokenize", lambda *_: pytest.fail("it is tokenized"))
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 413, response.text
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert error["param"] == param
