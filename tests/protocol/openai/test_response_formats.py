"""Forms of the output, in OpenAI's words and in those of Text Generation Inference."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from huggingface_hub.inference._providers import get_provider_helper

from protocol.model_selection import PLACEHOLDERS
from protocol.openai.response_formats import ResponseFormat, read_response_format
from runners.core.errors import InputError
from runners.core.generation import Constraint

SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}}
TEXT = msgspec.json.encode(SCHEMA).decode()
NAMED = {"name": "place", "schema": SCHEMA}


@pytest.mark.parametrize(
    ("form", "kind", "value"),
    [
        ({"type": "json_object"}, "json_object", ""),
        ({"type": "json_schema", "json_schema": NAMED}, "json", TEXT),
        ({"type": "json_schema", "value": NAMED}, "json", TEXT),
        ({"type": "json_object", "value": SCHEMA}, "json", TEXT),
        ({"type": "json", "value": SCHEMA}, "json", TEXT),
        ({"type": "json", "value": json.dumps(SCHEMA)}, "json", TEXT),
        ({"type": "regex", "value": "a|b"}, "regex", "a|b"),
    ],
)
def test_forms(form: dict[str, Any], kind: Any, value: str) -> None:
    assert read_response_format(msgspec.convert(form, ResponseFormat)) == Constraint(kind, value)


def test_the_body_that_huggingface_hub_sends() -> None:
    helper: Any = get_provider_helper("hf-inference", "conversational", "http://localhost:3000")
    body = helper.prepare_request(
        inputs=[], parameters={"response_format": {"type": "json_schema", "json_schema": NAMED}},
        headers={}, model="http://localhost:3000", api_key=None,
    ).json  # fmt: skip
    assert body["model"] in PLACEHOLDERS
    assert read_response_format(msgspec.convert(body["response_format"], ResponseFormat)) == Constraint("json", TEXT)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"type": "json_schema"}, "response_format json_schema needs json_schema.schema"),
        ({"type": "json_schema", "json_schema": NAMED, "value": NAMED}, "give one of json_schema and value"),
        ({"type": "json_object", "schema": SCHEMA}, "the schema of response_format must be in its json_schema"),
        ({"type": "json"}, "the value of response_format must be a JSON schema if the type is json"),
        ({"type": "json", "value": "{"}, "the schema of response_format is no JSON object"),
        ({"type": "json_schema", "value": SCHEMA}, "an object with a schema if it is json_schema"),
        ({"type": "regex", "value": ""}, "a pattern of at most 262144 characters if it is regex"),
        ({"type": "text", "value": SCHEMA}, "the value of response_format must be"),
        ({"type": "structural_tag"}, "only by OpenAI's API where vLLM runs the model"),
    ],
)
def test_wrong_forms(form: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_response_format(msgspec.convert(form, ResponseFormat))
    assert error.value.param == "response_format"
