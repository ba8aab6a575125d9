"""Messages in the form that a template expects: against vLLM's own rules."""

from __future__ import annotations

from typing import Any

import pytest

from runners.generator.chat_messages import find_content_format, shape_messages

AS_TEXT = "{% for message in messages %}<{{ message.role }}>{{ message['content'] }}{% endfor %}"
AS_PARTS = "{% for message in messages %}{% for part in message['content'] %}{{ part.text }}{% endfor %}{% endfor %}"
WITH_GENERATION = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
TEMPLATES = {
    AS_TEXT: "string",
    AS_PARTS: "openai",
    "{% for m in messages %}{% for c in m.content %}{{ c }}{% endfor %}{% endfor %}": "openai",
    "{% for m in messages %}{% for c in m.content[1:] | list %}{{ c }}{% endfor %}{% endfor %}": "openai",
    "{% set content = messages[0].content %}{% for c in content %}{{ c }}{% endfor %}": "openai",
    "{% set content = messages[0].content %}{% for c in content[1:] %}{{ c }}{% endfor %}": "string",
    "{% for m in messages | list %}{{ m.content | trim }}{% endfor %}": "string",
    WITH_GENERATION: "string",
    "{% for": "string",
}
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.items())
def test_the_content_that_a_template_takes(template: str, expected: str) -> None:
    assert find_content_format(template) == expected


@pytest.mark.parametrize(
    ("template", "content", "shaped"),
    [
        (AS_TEXT, "a", "a"), (AS_TEXT, PARTS, "a\nb"), (AS_TEXT, None, ""), (AS_PARTS, "a", PARTS[:1]),
        (AS_PARTS, PARTS, PARTS), (AS_PARTS, None, []),
    ],
)  # fmt: skip
def test_content(template: str, content: Any, shaped: Any) -> None:
    assert shape_messages([{"role": "user", "content": content}], template) == [{"role": "user", "content": shaped}]


def test_what_tools_return_is_always_a_text() -> None:
    assert shape_messages([{"role": "tool", "content": PARTS}], AS_PARTS) == [{"role": "tool", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ("developer user", [("system", "0"), ("user", "1")]),
        ("user developer", [("system", "1"), ("user", "0")]),
        ("system user developer", [("system", "0\n\n2"), ("user", "1")]),
        # Without a developer, nobody's place is changed.
        ("user system", [("user", "0"), ("system", "1")]),
    ],
)
def test_developers_are_the_system(roles: str, expected: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": str(index)} for index, role in enumerate(roles.split())]
    assert [(each["role"], each["content"]) for each in shape_messages(messages, AS_TEXT)] == expected
    knows = AS_TEXT + "{% if messages[0].role == 'developer' %}{% endif %}"
    assert [each["role"] for each in shape_messages(messages, knows)] == roles.split()


@pytest.mark.slow
def test_templates_are_told_apart_as_by_vllm() -> None:
    renderers = pytest.importorskip("vllm.renderers.hf")
    for template, expected in TEMPLATES.items():
        assert renderers._detect_content_format(template, default="string") == expected, template
