"""Chats where vLLM does not run the model, by OpenAI's client and as they are on the wire."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from tests.protocol.openai.replies import Reply, read_events

HELLO: Any = [{"role": "user", "content": "hello"}]
GREEDY: Any = {"model": "llama", "temperature": 0, "max_tokens": 4}
ASSISTANT: Any = [*HELLO, {"role": "assistant", "content": "well"}]


def prompt_of(http: TestClient, **body: Any) -> str:
    """What a chat's prompt says."""
    answer = http.post("/v1/chat/completions", json={"max_tokens": 1, "return_token_ids": True, **body})
    assert answer.status_code == 200, answer.text
    text: str = http.post("/detokenize", json={"tokens": answer.json()["prompt_token_ids"]}).json()["prompt"]
    return text


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({"messages": HELLO}, "<user>hello<assistant>"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}]},
         "<user>a\nb<assistant>"),
        ({"messages": [*HELLO, {"role": "developer", "content": "be kind"}]}, "<system>be kind<user>hello<assistant>"),
        ({"messages": HELLO, "chat_template_kwargs": {"mood": "glad", "unknown": 1}}, "<user>hello(glad)<assistant>"),
        ({"messages": HELLO, "chat_template_kwargs": {"add_generation_prompt": False}}, "<user>hello<assistant>"),
        ({"messages": HELLO, "chat_template_kwargs": {"tools": [{"function": {"name": "look_up"}}]}},
         "<user>hello[look_up]<assistant>"),
        ({"messages": HELLO, "add_generation_prompt": False}, "<user>hello"),
        ({"messages": ASSISTANT, "add_generation_prompt": False, "continue_final_message": True},
         "<user>hello<assistant>well"),
        ({"messages": HELLO, "tools": [{"type": "function", "function": {"name": "look_up"}}], "tool_choice": "none"},
         "<user>hello[look_up]<assistant>"),
        ({"messages": HELLO, "truncate_prompt_tokens": 2, "truncation_side": "left"}, "ant>"),
    ],
)  # fmt: skip
def test_the_prompt_is_vllms(http: TestClient, body: dict[str, Any], prompt: str) -> None:
    assert prompt_of(http, **body) == prompt


def test_the_answer(client: openai.OpenAI, http: TestClient) -> None:
    answer = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **GREEDY)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.refusal, choice.finish_reason) == ("assistant", None, "length")
    assert choice.logprobs is not None
    assert (choice.logprobs.refusal, len(choice.logprobs.content or [])) == (None, 4)
    for entry in choice.logprobs.content or []:
        assert bytes(entry.bytes or []).decode(errors="replace") == entry.token
        assert len(entry.top_logprobs) == 2
    wire = http.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY}).json()
    assert (wire["choices"][0]["message"]["refusal"], wire["choices"][0]["logprobs"]) == (None, None)
    assert (wire["prompt_logprobs"], wire["prompt_token_ids"]) == (None, None)


@pytest.mark.parametrize(("chosen", "expected"), [(42, [42, 500, 9]), (9, [9, 500])])
def test_log_probabilities_of_named_tokens(http: TestClient, chosen: int, expected: list[int]) -> None:
    """Beside the chosen one, which is not repeated."""
    body = {
        "messages": HELLO, "max_tokens": 1, "logprobs": True, "logprob_token_ids": [500, 9],
        "allowed_token_ids": [chosen], "return_tokens_as_token_ids": True,
    }  # fmt: skip
    [entry] = http.post("/v1/chat/completions", json=body).json()["choices"][0]["logprobs"]["content"]
    assert entry["token"] == f"token_id:{chosen}"
    assert sorted(top["token"] for top in entry["top_logprobs"]) == sorted(f"token_id:{each}" for each in expected)
    assert entry["top_logprobs"][0]["token"] == f"token_id:{chosen}"


def test_the_limit_of_openai_wins(http: TestClient) -> None:
    body = {"messages": HELLO, **GREEDY, "max_completion_tokens": 2}
    assert http.post("/v1/chat/completions", json=body).json()["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "prefix"),
    [
        ({"echo": True, "messages": ASSISTANT, "add_generation_prompt": False, "continue_final_message": True}, "well"),
        ({"echo": True, "messages": ASSISTANT}, "well"),
        ({"echo": True, "messages": HELLO}, ""),
    ],
)
def test_echo_is_the_last_message_of_the_same_role(http: TestClient, body: dict[str, Any], prefix: str) -> None:
    echoed, plain = (
        http.post("/v1/chat/completions", json={**GREEDY, **body, "echo": echo}).json()["choices"][0]["message"]
        for echo in (True, False)
    )
    assert echoed["content"] == prefix + plain["content"]
    parts = read_events(http.post("/v1/chat/completions", json={**GREEDY, **body, "stream": True}).text)
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == echoed["content"]


def test_a_stream_tells_its_usage_all_along(http: TestClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"messages": HELLO, **GREEDY, "stream": True, "stream_options": options, "return_token_ids": True}
    parts = read_events(http.post("/v1/chat/completions", json=body).text)
    counted = [part["usage"]["completion_tokens"] for part in parts]
    assert counted == [0, 1, 2, 3, 4, 4]
    assert parts[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(parts[0]["prompt_token_ids"]) == parts[-1]["usage"]["prompt_tokens"]
    assert [len(part["choices"][0]["token_ids"]) for part in parts[1:-1]] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"regex": "[ab]{3}c"}}, "[ab]{3}c"),
        ({"structured_outputs": {"json": {"enum": ["yes"]}}}, ' *"yes"'),
    ],
)
def test_an_output_matches_what_is_asked_for(client: openai.OpenAI, given: dict[str, Any], pattern: str) -> None:
    answer = client.chat.completions.create(messages=HELLO, model="llama", max_tokens=60, seed=1, extra_body=given)
    import re

    assert re.fullmatch(pattern, (answer.choices[0].message.content or "").strip())


def test_a_pydantic_model_comes_back(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(messages=HELLO, model="llama", response_format=Reply, seed=1, max_tokens=200)
    assert isinstance(answer.choices[0].message.parsed, Reply)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": []}, "tools", "the body is not as expected: Expected `array` of length >= 1"),
        ({"tool_choice": "required"}, "tool_choice", "tool_choice needs tools"),
        ({"tool_choice": "perhaps"}, "tool_choice", "the body is not as expected: Invalid enum value"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs to be true"),
        ({"chat_template": "x"}, "chat_template", "this server does not take chat templates of requests"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template", "this server does not take chat templates"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "chat_template_kwargs must not have messages"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs", "chat_template_kwargs must not have tokenize"),
        ({"continue_final_message": True}, "continue_final_message", "continue_final_message needs add_generation_prompt"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None, "the chat template refuses the messages: no robots"),
        ({"functions": [{"name": "x"}]}, "functions", "functions is not supported here"),
        ({"store": True}, "store", "store is not supported here"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be at least 1"),
        ({"reasoning_effort": "extra"}, "reasoning_effort", "the body is not as expected: Invalid enum value"),
        ({"structured_outputs": {"regex": "["}}, None, ""),
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs",
         "give one of response_format and structured_outputs"),
    ],
)  # fmt: skip
def test_what_is_refused(http: TestClient, body: dict[str, Any], param: str | None, message: str) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HELLO, **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["message"].startswith(message)
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    "body",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "flex", "prompt_cache_key": "x"},
        {"top_logprobs": 0}, {"top_logprobs": None, "logprobs": True}, {"nobody_knows": 1},
        {"modalities": ["text"], "parallel_tool_calls": True, "tool_choice": "none", "verbosity": "medium"},
        {"documents": [{"title": "a", "text": "b"}], "reasoning_effort": "low", "include_reasoning": False},
        {"response_format": {"type": "text"}, "stop": "", "stop_token_ids": [], "bad_words": [], "n": None},
    ],
)  # fmt: skip
def test_what_changes_nothing_is_accepted(http: TestClient, body: dict[str, Any]) -> None:
    answers = [
        http.post("/v1/chat/completions", json={"messages": HELLO, **GREEDY, **given}).json() for given in ({}, body)
    ]
    assert answers[0]["choices"][0]["message"] == answers[1]["choices"][0]["message"]


def test_a_model_that_is_not_there(http: TestClient) -> None:
    response = http.post("/v1/chat/completions", json={"messages": HELLO, "model": "nope"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
    assert json.loads(response.text)["error"]["param"] == "model"
