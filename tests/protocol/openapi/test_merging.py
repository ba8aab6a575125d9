"""Operations of several protocols at one path."""

from __future__ import annotations

from typing import Any

from protocol.openapi.merging import merge_operations

TEXT = {"application/json": {"schema": {"type": "string"}}}


def operation(content: dict[str, Any] | None) -> dict[str, Any]:
    answer = {"description": "ok"} if content is None else {"description": "ok", "content": content}
    body = {"required": True, "content": TEXT}
    return {"tags": ["a"], "summary": "a", "parameters": [], "requestBody": body, "responses": {"200": answer}}


def test_contents_without_a_schema() -> None:
    """As vLLM describes its streams, and answers without a body."""
    whole = operation({**TEXT, "text/event-stream": {"schema": {"type": "object"}}})
    for content in ({**TEXT, "text/event-stream": {}}, None):
        merged = merge_operations(whole, operation(content), {})["responses"]["200"]["content"]
        assert merged["application/json"]["schema"] in ({"type": "string"}, {"anyOf": [{"type": "string"}] * 2})
        assert merged["text/event-stream"]["schema"] == (
            {"type": "object"} if content is None else {"anyOf": [{"type": "object"}, {}]}
        )
