from __future__ import annotations

from typing import Any

import pytest

from protocol.openai.constraint_limits import check_constraint, check_tools
from runners.core.errors import InputError

STRING = {"type": "string"}


def unite(depth: int) -> dict[str, Any]:
    """A schema of 3^depth - 1 alternatives."""
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        properties = {"a": schema, "b": schema}
        schema = {"oneOf": [{"type": "object", "properties": properties}, {"type": "array", "items": schema}]}
    return schema


CIRCLE = {"$defs": {"a": {"$ref": "#/$defs/b~1c"}, "b/c": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
TREE = {"type": "object", "properties": {"left": {"$ref": "#"}, "right": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"choice": ["a"] * 1025}, "p has 1025 choices; 1024 are the most"),
        ({"choice": ["a" * 1000] * 17}, "the choices of p have 17000 characters; 16384 are the most"),
        ({"grammar": "a" * (2**18 + 1)}, "the grammar of p has 262145 characters; 262144 are the most"),
        ({"regex": "((a{1000}){1000}){1000}"}, "the regex of p counts to 1000000000 inside each other; 100000 are"),
        ({"regex": r"(?:[^)]{2,400}\d){1,}(x(a{400}|b){,300})"}, None),
        ({"regex": r"(?:(?:\)a){500}){201}"}, "counts to 100500 inside"),
        ({"regex": "(a|a?)+(b|b?)+" * 50}, "the regex of p has 200 repetitions; 64 are the most"),
        ({"json": unite(6)}, r"the schema of p has 728 alternatives \(oneOf, anyOf, allOf\); 512 are the most"),
        ({"json": {"$ref": "#"}}, r"the schema of p has a \$ref that leads to itself"),
        ({"json_schema": {"schema": CIRCLE}}, r"the schema of p has a \$ref that leads to itself"),
        ({"format": {"schema": '{"$ref": "#"}'}}, r"the schema of p has a \$ref that leads to itself"),
        *[
            (each, None)
            for each in (
                {"json": unite(5)}, {"json": TREE}, {"json": "{"}, {"json": {"$ref": "https://a.example/b"}}, {"json": 7},
                {"regex": r"\d{4}-\d{2}-\d{2}T[\d\]{9}:]+(\.\d{1,9})?"}, {"regex": "(("}, {"regex": "){3}"},
                {"choice": ["yes", "no", 7]}, {"type": "json_object"}, {},
            )
        ],
    ],
)  # fmt: skip
def test_what_takes_long_to_compile_is_refused(given: dict[str, Any], message: str | None) -> None:
    if message is None:
        check_constraint(given, "p")
        return
    with pytest.raises(InputError, match=message) as refused:
        check_constraint(given, "p")
    assert refused.value.param == "p"


@pytest.mark.parametrize("tool", [{"function": {"parameters": {"$ref": "#"}}}, {"parameters": {"$ref": "#"}}])
def test_schemas_of_tools(tool: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="the schema of tools"):
        check_tools([{"type": "web_search"}, "wrong", {"function": 7}, tool])
