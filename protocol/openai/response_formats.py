"""OpenAI's `response_format`: the form of the output."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from runners.core.errors import InputError, UnsupportedError
from runners.core.generation import Constraint
from runners.core.output_constraints import constrain_to_schema


class JsonSchema(msgspec.Struct, kw_only=True):
    """A JSON schema and its name."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """OpenAI's `response_format`: the form of the output."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None


def read_response_format(response_format: ResponseFormat | None) -> Constraint | None:
    """
    Raises:
        InputError: the schema is missing or nested too deeply.
        UnsupportedError: only vLLM implements the type.
    """
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Constraint("json_object", param="response_format")
    if response_format.type == "structural_tag":
        raise UnsupportedError("response_format structural_tag", "response_format")
    if response_format.json_schema is None or response_format.json_schema.schema is None:
        raise InputError("response_format json_schema needs json_schema.schema", "response_format")
    return constrain_to_schema(response_format.json_schema.schema, "response_format")
