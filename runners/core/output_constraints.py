"""Constraints of outputs: vLLM's `structured_outputs`, which every protocol has, Text Generation Inference's grammars,
and the limits of JSON schemas.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from runners.core.errors import InputError, UnsupportedError
from runners.core.generation import Constraint

# vLLM has the same limit: the cost of a grammar grows steeply with its nesting.
_MAX_NESTING = 64
# All combinations of alternatives are tried: twelve levels take seconds.
_MAX_ALTERNATIVES = 8
_COMBINING = frozenset({"oneOf", "anyOf", "allOf"})
# Most texts of a `choice`, and most characters of a schema, a pattern or a text.
MAX_CHOICE_TEXTS = 1024
MAX_CHARACTERS = 2**18

Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_CHARACTERS)]


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """vLLM's `structured_outputs`: one of these constraints."""

    json: dict[str, Any] | str | None = None
    regex: Pattern | None = None
    choice: Annotated[list[Pattern], Meta(min_length=1, max_length=MAX_CHOICE_TEXTS)] | None = None
    grammar: Pattern | None = None
    json_object: bool | None = None
    # These fields are read so that they can be refused.
    structural_tag: str | None = None
    whitespace_pattern: str | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False


def read_structured_outputs(outputs: StructuredOutputs | None) -> Constraint | None:
    """
    Raises:
        InputError: there is no constraint, or several, or a schema is nested too deeply.
        UnsupportedError: only vLLM implements a field.
    """
    if outputs is None:
        return None
    for name in ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        if getattr(outputs, name):
            raise UnsupportedError(f"structured_outputs.{name}", "structured_outputs")
    kinds: tuple[Literal["json", "regex", "choice", "grammar"], ...] = ("json", "regex", "choice", "grammar")
    given_kinds = [kind for kind in kinds if getattr(outputs, kind) is not None]
    if len(given_kinds) + bool(outputs.json_object) != 1:
        raise InputError(
            f"structured_outputs must have exactly one of {', '.join(kinds)} and json_object", "structured_outputs"
        )
    if not given_kinds:
        return Constraint("json_object", param="structured_outputs")
    if outputs.choice is not None:
        return Constraint("choice", tuple(outputs.choice), "structured_outputs")
    if outputs.json is not None:
        return constrain_to_schema(outputs.json, "structured_outputs")
    return Constraint(given_kinds[0], outputs.regex or outputs.grammar or "", "structured_outputs")


def read_grammar(kind: str, value: Any, param: str) -> Constraint:
    """Read a grammar of Text Generation Inference, which is an object with a `type` and a `value`.

    https://huggingface.co/docs/text-generation-inference/basic_tutorials/using_guidance

    Args:
        kind: the grammar's type.
        param: the field with the grammar.

    Raises:
        InputError: the value is not as the type asks for.
    """
    match kind, value:
        case "regex", str() if 0 < len(value) <= MAX_CHARACTERS:
            return Constraint("regex", value, param)
        case "json" | "json_object", dict() | str():
            return constrain_to_schema(value, param)
        case "json_schema", {"schema": dict() | str() as schema}:
            return constrain_to_schema(schema, param)
    raise InputError(
        f"the value of {param} must be a JSON schema if the type is json or json_object, an object with a schema if it "
        f"is json_schema, or a pattern of at most {MAX_CHARACTERS} characters if it is regex",
        param,
    )


def constrain_to_schema(schema: dict[str, Any] | str, param: str) -> Constraint:
    """
    Args:
        schema: the schema, or its JSON text.
        param: the field with the schema.

    Raises:
        InputError: the schema is no JSON object, or is nested too deeply.
    """
    if isinstance(schema, str) and len(schema) > MAX_CHARACTERS:
        raise InputError(f"the schema of {param} has more than {MAX_CHARACTERS} characters", param)
    try:
        parsed = msgspec.json.decode(schema, type=dict[str, Any]) if isinstance(schema, str) else schema
        text = msgspec.json.encode(parsed).decode()
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"the schema of {param} is no JSON object", param) from error
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"the schema of {param} has more than {MAX_CHARACTERS} characters", param)
    check_schema(parsed, param)
    return Constraint("json", text, param)


def check_schema(schema: Any, param: str) -> None:
    """
    Raises:
        InputError: the schema is too long, or the schema or its alternatives are nested too deeply.
    """
    if isinstance(schema, str) or len(msgspec.json.encode(schema)) > MAX_CHARACTERS:
        raise InputError(f"the schema of {param} has more than {MAX_CHARACTERS} characters", param)
    if _nesting(schema) > _MAX_NESTING:
        raise InputError(
            f"the schema of {param} is nested too deeply: at most {_MAX_NESTING} levels are allowed", param
        )
    level, depth = [schema], 0
    while level:
        # The next alternatives below each schema, at any depth.
        next_level = [node for root in level for node in _alternatives(root)]
        depth += bool(next_level)
        if depth > _MAX_ALTERNATIVES:
            raise InputError(
                f"the schema of {param} has oneOf, anyOf or allOf nested more than {_MAX_ALTERNATIVES} deep", param
            )
        level = next_level


def _alternatives(root: Any) -> list[Any]:
    alternatives: list[Any] = []
    stack = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            for name, value in node.items():
                if name in _COMBINING and isinstance(value, list):
                    alternatives += value
                else:
                    stack.append(value)
        elif isinstance(node, list):
            stack += node
    return alternatives


def _nesting(value: Any) -> int:
    """How deeply objects and lists are nested; counting stops at too many levels."""
    level, depth = [value], 0
    while level and depth <= _MAX_NESTING:
        children = [list(node.values()) if isinstance(node, dict) else node for node in level]
        level = [child for each in children for child in each if isinstance(child, dict | list)]
        depth += 1
    return depth
