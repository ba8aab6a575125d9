"""The page's files, and the policy that they are served under."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser

import pytest

from protocol.playground.page import load_page


class _Elements(HTMLParser):
    """The elements of the document, and the contents of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.contents: dict[str, list[str]] = {"script": [], "style": []}
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open = tag

    def handle_data(self, data: str) -> None:
        if self._open in self.contents:
            self.contents[self._open].append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


@pytest.fixture(scope="module")
def elements() -> _Elements:
    parser = _Elements()
    parser.feed(load_page().body.decode())
    return parser


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_allows_the_only_script_and_style(kind: str, elements: _Elements) -> None:
    """The hash is that of what a browser reads between the tags."""
    [content] = elements.contents[kind]
    digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in load_page().headers["content-security-policy"].split("; "))
    assert rules[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_policy_allows_nothing_else() -> None:
    rules = dict(rule.split(" ", 1) for rule in load_page().headers["content-security-policy"].split("; "))
    others = {name: value for name, value in rules.items() if name not in ("script-src", "style-src")}
    assert others == {
        "default-src": "'none'", "img-src": "data:", "connect-src": "'self'", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'", "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }  # fmt: skip


def test_nothing_is_loaded_from_elsewhere(elements: _Elements) -> None:
    loaded = [value for _, name, value in elements.attributes if name in ("src", "srcset", "href", "action", "data")]
    assert loaded == ["data:,", "#main", "docs"]
    # An address that is shown or made, such as that of this server, is none of these.
    assert not re.findall(r"https?:|//\w+\.\w+|@import|\burl\(", load_page().body.decode())


def test_the_policy_would_refuse_what_the_page_does_not_have(elements: _Elements) -> None:
    """Attributes with styles and handlers, sinks of markup, and code in texts."""
    assert not [name for _, name, _ in elements.attributes if name == "style" or name.startswith("on")]
    [script] = elements.contents["script"]
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\.cssText|setAttribute\(\"style"
    )
    assert not re.findall(sinks, script)


def test_the_document_is_whole(elements: _Elements) -> None:
    """No placeholder is left, each view is there, and no text ends the script early."""
    document = load_page().body.decode()
    assert "{style}" not in document
    assert "{script}" not in document
    assert document.count("</script>") == document.count("</style>") == 1
    [script] = elements.contents["script"]
    assert script.count("\nregisterView({") == len(set(re.findall(r'\n  id: "([\w-]+)"', script)))


def test_the_tag_changes_with_the_page_only() -> None:
    tag = load_page().headers["etag"]
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', tag)
    assert load_page().headers["etag"] == tag
