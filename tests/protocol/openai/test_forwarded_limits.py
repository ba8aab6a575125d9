"""Bodies that vLLM's own layer would answer, refused before it reads them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from protocol.openai.forwarded_limits import change_fields, check_forwarded
from runners.core.errors import InputError, LimitExceededError
from runners.core.request_limits import RequestLimits


def nest(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"oneOf": [schema, {"type": "null"}]}
    return schema


HELLO = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": "a" * (2**20 + 1)}, "1048577 characters of a prompt"),
        ({"prompt": ["a"] * 1025}, "1025 outputs, prompts times n,"),
        ({"prompt": ["a"] * 9, "n": 128}, "1152 outputs, prompts times n,"),
        ({"input": ["a"] * 4097}, "4097 texts in input are more than the 4096 that --max_client_batch_size allows"),
        ({"query": "a", "documents": ["a"] * 4097}, "4097 texts in documents are more"),
        ({"messages": [HELLO] * 2049}, "2049 messages are more than the 2048 that --max_messages allows"),
        ({"messages": [{"role": "user", "content": "a" * 2**20}]}, "characters of a chat are more"),
        ({"data_1": "a", "data_2": ["a"] * 4097}, "4097 texts in data_2 are more"),
        ({"queries": "a", "items": ["a" * (2**20 + 1)]}, "1048577 characters of a prompt"),
        ({"query": "a", "documents": [{"content": [{"text": "a" * (2**20 + 1)}]}]}, "1048577 characters of a prompt"),
        ({"input": "a", "instructions": "a" * (2**20 + 1)}, "1048577 characters of a prompt"),
        ({"prompt": "a", "suffix": "a" * (2**20 + 1)}, "1048577 characters of a prompt"),
        ({"input": ["a" * 2**20] * 33}, "34603008 characters in input are more than the 33554432"),
        ({"messages": [HELLO], "tools": [{}] * 257}, "257 tools are more"),
        ({"messages": [HELLO], "n": 1025}, "1025 outputs, prompts times n,"),
        ({"prompt": "a", "stop": ["a"] * 65}, "65 stop strings are more than the 64 that --max_stop_strings allows"),
        ({"prompt": "a", "logit_bias": {str(index): 1 for index in range(1025)}}, "1025 tokens in logit_bias are more"),
    ],
)
def test_amounts(body: dict[str, Any], message: str) -> None:
    with pytest.raises(LimitExceededError) as refused:
        check_forwarded(msgspec.json.encode(body), RequestLimits())
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs has 1025 choices; 1024 are the most"),
        ({"structured_outputs": {"regex": "a" * (2**18 + 1)}}, "the regex of structured_outputs has 262145 characters"),
        ({"structured_outputs": {"json": nest(9)}}, "oneOf, anyOf or allOf nested more than 8 deep"),
        ({"structured_outputs": {"json": msgspec.json.encode(nest(9)).decode()}}, "nested more than 8 deep"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": nest(9)}}}, "nested more than 8 deep"),
        ({"text": {"format": {"type": "json_schema", "schema": nest(9)}}}, "nested more than 8 deep"),
        (
            {"messages": [HELLO], "tools": [{"function": {"name": "a", "parameters": nest(9)}}]},
            "nested more than 8 deep",
        ),
    ],
)
def test_constraints(body: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_forwarded(msgspec.json.encode({"prompt": "a", **body}), RequestLimits())


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "a", "n": 2, "stop": "b", "structured_outputs": {"json": nest(8)}},
        {"prompt": [1, 2, 3] * 2000}, {"prompt": [[1, 2], [3]]}, {"input": ["a"] * 4096}, {"input": [HELLO]},
        {"messages": [HELLO], "response_format": {"type": "json_object"}, "n": None},
        {"messages": "wrong", "prompt": 7, "documents": {"content": [{"type": "text", "text": "a"}]}, "stop": 3},
    ],
)  # fmt: skip
def test_what_is_vllms_to_judge_passes(body: dict[str, Any]) -> None:
    assert not check_forwarded(msgspec.json.encode(body), RequestLimits()).changes


SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("form", "constraint"),
    [
        ({"type": "json_object", "value": SCHEMA}, {"json": '{"type":"object"}'}),
        ({"type": "json_schema", "value": {"schema": SCHEMA}}, {"json": '{"type":"object"}'}),
        ({"type": "regex", "value": "a+"}, {"regex": "a+"}),
    ],
)
def test_a_grammar_is_sent_in_words_that_vllm_knows(form: dict[str, Any], constraint: dict[str, Any]) -> None:
    body = msgspec.json.encode({"model": "m", "prompt": "a", "response_format": form}) + b" \n"
    checked = check_forwarded(body, RequestLimits())
    assert checked.model == "m"
    assert msgspec.json.decode(change_fields(body, checked.changes)) == {
        "model": "m", "prompt": "a", "response_format": None, "structured_outputs": constraint,
    }  # fmt: skip


@pytest.mark.parametrize("body", [b"{}", b" { }\n", b'{"model": "m"}', b'{"model":"m" , "prompt":"a" } '])
def test_a_body_is_an_object_with_the_changes_too(body: bytes) -> None:
    changes = {"model": "other", "seed": 1}
    assert msgspec.json.decode(change_fields(body, changes)) == msgspec.json.decode(body) | changes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"response_format": {"type": "json_object", "value": nest(9)}}, "nested more than 8 deep"),
        ({"response_format": {"type": "regex", "value": "a{9}" * 65}}, "has 65 repetitions"),
        ({"response_format": {"type": "regex", "value": 1}}, "the value of response_format must be"),
        (
            {"response_format": {"type": "regex", "value": "a"}, "structured_outputs": {"regex": "b"}},
            "give one of response_format and structured_outputs",
        ),
    ],
)
def test_a_grammar_that_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_forwarded(msgspec.json.encode({"prompt": "a", **fields}), RequestLimits())


@pytest.mark.parametrize(
    ("body", "characters"),
    [
        ({"prompt": ["ab", "c"], "suffix": "d"}, 4),
        ({"prompt": [1, 2, 3]}, 0),
        ({"query": "ab", "documents": ["c", {"text": "d"}, {"content": [{"type": "text", "text": "ef"}]}]}, 6),
        ({"messages": [HELLO]}, len('{"role":"user","content":"hello"}')),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a" * 2**21}}]}]},
            len('{"role":"user","content":[]}'),
        ),
    ],
)
def test_what_is_admitted(body: dict[str, Any], characters: int) -> None:
    """The characters of texts; an image is no text."""
    assert check_forwarded(msgspec.json.encode(body), RequestLimits()).characters == characters
