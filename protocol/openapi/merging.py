"""Operations of several protocols at one path, as one operation of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Components = dict[str, dict[str, Any]]

_RESPONSES = "#/components/responses/"


def merge_operations(first: Mapping[str, Any], second: Mapping[str, Any], responses: Components) -> dict[str, Any]:
    """The operation whose bodies and answers are those of either one.

    One that no model serves has no body and no answer but errors; the other's summary stands then.

    Args:
        responses: the document's shared responses, to which merged ones are added.
    """
    served = [each for each in (first, second) if "requestBody" in each] or [first]
    summaries = dict.fromkeys(each["summary"] for each in served)
    parameters = {(each["in"], each["name"]): each for each in (*first["parameters"], *second["parameters"])}
    merged: dict[str, Any] = {
        **first,
        "tags": [*dict.fromkeys((*first["tags"], *second["tags"]))],
        "summary": "; ".join(summaries),
        "parameters": [*parameters.values()],
    }
    bodies = [each["requestBody"] for each in served if "requestBody" in each]
    if bodies:
        merged["requestBody"] = {"required": True, "content": _merge_contents([each["content"] for each in bodies])}
    statuses = sorted({*first["responses"], *second["responses"]})
    merged["responses"] = {
        status: _merge_responses(
            [each["responses"][status] for each in (first, second) if status in each["responses"]], responses
        )
        for status in statuses
    }
    return merged


def _merge_responses(found: list[dict[str, Any]], responses: Components) -> dict[str, Any]:
    if len(found) == 1 or found[0] == found[1]:
        return found[0]
    names = [each["$ref"].removeprefix(_RESPONSES) for each in found if "$ref" in each]
    whole = [responses[each["$ref"].removeprefix(_RESPONSES)] if "$ref" in each else each for each in found]
    merged = {**whole[0], "content": _merge_contents([each.get("content", {}) for each in whole])}
    if len(names) < len(found):
        return merged
    name = "Or".join(names)
    responses[name] = merged
    return {"$ref": f"{_RESPONSES}{name}"}


def _merge_contents(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents by media type; of one that several have, with the schemas and the examples of all."""
    merged: dict[str, Any] = {}
    for media_type in dict.fromkeys(name for content in found for name in content):
        contents = [content[media_type] for content in found if media_type in content]
        # vLLM's streams have no schema, so anything may be in them.
        found_schemas = [content.get("schema", {}) for content in contents]
        schemas = [schema for each in found_schemas for schema in each.get("anyOf", [each])]
        examples: dict[str, Any] = {}
        for position, content in enumerate(contents):
            for key, example in content.get("examples", {}).items():
                examples[f"{key} {position}" if key in examples else key] = example
        merged[media_type] = {"schema": {"anyOf": schemas} if len(schemas) > 1 else schemas[0]}
        if examples:
            merged[media_type]["examples"] = examples
    return merged
