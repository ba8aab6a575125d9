"""The form of the output: OpenAI's `response_format`, or Text Generation Inference's, which huggingface_hub sends."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from runners.core.errors import InputError, UnsupportedError
from runners.core.generation import Constraint
from runners.core.output_constraints import constrain_to_schema, read_grammar

# The types that only Text Generation Inference has.
_GRAMMARS = frozenset({"json", "regex"})


class JsonSchema(msgspec.Struct, kw_only=True):
    """A JSON schema and its name."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """OpenAI's `response_format`: the form of the output, or Text Generation Inference's, with a `value`."""

    type: Literal["text", "json_object", "json_schema", "structural_tag", "json", "regex"]
    json_schema: JsonSchema | None = None
    # Text Generation Inference's.
    value: Any = None
    # Some servers read a schema here; it is read so that it can be refused.
    schema: Any = None


def is_grammar(kind: str, value: Any) -> bool:
    """Whether a format of this type, with this value, is a grammar of Text Generation Inference."""
    return value is not None or kind in _GRAMMARS


def read_response_format(response_format: ResponseFormat | None) -> Constraint | None:
    """
    Raises:
        InputError: the schema or the value is missing, or a schema is nested too deeply.
        UnsupportedError: only vLLM implements the type.
    """
    if response_format is None:
        return None
    if response_format.schema is not None:
        raise InputError("the schema of response_format must be in its json_schema", "response_format")
    if is_grammar(response_format.type, response_format.value):
        if response_format.json_schema is not None:
            raise InputError("give one of json_schema and value in response_format", "response_format")
        return read_grammar(response_format.type, response_format.value, "response_format")
    if response_format.type == "text":
        return None
    if response_format.type == "json_object":
        return Constraint("json_object", param="response_format")
    if response_format.type == "structural_tag":
        raise UnsupportedError("response_format structural_tag", "response_format")
    if response_format.json_schema is None or response_format.json_schema.schema is None:
        raise InputError("response_format json_schema needs json_schema.schema", "response_format")
    return constrain_to_schema(response_format.json_schema.schema, "response_format")
