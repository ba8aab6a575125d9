"""OpenAI's responses where vLLM does not run the model: its client, and the events on the wire."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from tests.protocol.openai.replies import Reply

GIVEN: Any = {"model": "llama", "temperature": 0, "max_output_tokens": 4}
MESSAGES: Any = [{"role": "user", "content": "hello"}]
# As vLLM's own server sends them.
EVENTS = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    *["response.output_text.delta"] * 4, "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip


def test_the_answer_is_that_of_a_chat(client: openai.OpenAI) -> None:
    answer = client.responses.create(input="hello", **GIVEN)
    chat = client.chat.completions.create(messages=MESSAGES, model="llama", temperature=0, max_tokens=4)
    assert answer.output_text == chat.choices[0].message.content
    assert (answer.status, answer.incomplete_details and answer.incomplete_details.reason) == (
        "incomplete", "max_output_tokens",
    )  # fmt: skip
    assert answer.usage is not None
    assert chat.usage is not None
    assert answer.usage.input_tokens == chat.usage.prompt_tokens
    assert (answer.usage.output_tokens, answer.usage.total_tokens) == (4, chat.usage.total_tokens)
    assert answer.output[0].type == "message"


@pytest.mark.parametrize(
    "given",
    [
        {"input": MESSAGES},
        {"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
        {"input": "hello", "store": True, "metadata": {"a": "b"}, "parallel_tool_calls": True, "tools": []},
        {"input": "hello", "tool_choice": "auto", "truncation": "auto", "text": {"format": {"type": "text"}}},
    ],
)
def test_inputs_that_are_the_same(client: openai.OpenAI, given: dict[str, Any]) -> None:
    expected = client.responses.create(input="hello", **GIVEN).output_text
    assert client.responses.create(**given, **GIVEN).output_text == expected


def test_instructions_are_the_systems(client: openai.OpenAI) -> None:
    answer = client.responses.create(input="hello", instructions="be kind", **GIVEN)
    system: Any = {"role": "system", "content": "be kind"}
    messages = [system, *MESSAGES]
    chat = client.chat.completions.create(messages=messages, model="llama", temperature=0, max_tokens=4)
    assert answer.output_text == chat.choices[0].message.content
    assert answer.instructions == "be kind"


def test_a_stream(client: openai.OpenAI, http: TestClient) -> None:
    whole = client.responses.create(input="hello", **GIVEN)
    with client.responses.stream(input="hello", **GIVEN) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.type for event in events] == EVENTS
    assert final.output_text == whole.output_text
    assert final.usage == whole.usage
    text = http.post("/v1/responses", json={"input": "hello", **GIVEN, "stream": True}).text
    for number, event in enumerate(text.strip().split("\n\n")):
        name, data = event.split("\n")
        said = json.loads(data.removeprefix("data: "))
        assert (name, said["sequence_number"]) == (f"event: {said['type']}", number)


def test_log_probabilities(client: openai.OpenAI) -> None:
    include: Any = ["message.output_text.logprobs"]
    answer = client.responses.create(input="hello", include=include, top_logprobs=2, **GIVEN)
    [message] = answer.output
    assert message.type == "message"
    [part] = message.content
    assert part.type == "output_text"
    assert [len(entry.top_logprobs) for entry in part.logprobs or []] == [2] * 4


def test_a_pydantic_model_comes_back(client: openai.OpenAI) -> None:
    answer = client.responses.parse(input="hello", text_format=Reply, model="llama", max_output_tokens=200)
    assert isinstance(answer.output_parsed, Reply)


def test_a_message_is_gone_on_with(http: TestClient) -> None:
    begun = {"role": "assistant", "content": "well", "status": "incomplete"}
    response = http.post("/v1/responses", json={"input": [*MESSAGES, begun], **GIVEN}).json()
    body = {"messages": [*MESSAGES, begun], "add_generation_prompt": False, "continue_final_message": True}
    chat = http.post("/v1/chat/completions", json={**body, "temperature": 0, "max_tokens": 4}).json()
    assert response["output"][0]["content"][0]["text"] == chat["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools", "tools is not supported here, only by OpenAI's API where vLLM"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_id is not supported here, only"),
        ({"background": True}, "background", "background is not supported here"),
        ({"conversation": "x"}, "conversation", "conversation is not supported here"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "input[0] is of type item_reference: only messages"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "input[0] has content that is no"),
        ({"input": []}, "input", "the body is not as expected"),
        ({"include": ["reasoning.encrypted_content"]}, "include", "include reasoning.encrypted_content is not supported"),
        ({"text": {"verbosity": "high"}}, "text", "text.verbosity is not supported here"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text", "text.format json_schema needs a schema"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "this server does not take chat"),
        ({"max_output_tokens": 0}, "max_output_tokens", "the body is not as expected: Expected `int` >= 1"),
    ],
)  # fmt: skip
def test_what_is_refused(http: TestClient, body: dict[str, Any], param: str, message: str) -> None:
    for stream in (False, True):
        response = http.post("/v1/responses", json={"input": "hello", **body, "stream": stream})
        assert response.status_code == 400, response.text
        error = response.json()["error"]
        assert error["message"].startswith(message)
        assert error["param"] == param
