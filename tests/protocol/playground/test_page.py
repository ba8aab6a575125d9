"""The page's files, and the policy that they are served under."""

from __future__ import annotations

import hashlib
import re
import shutil
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path

import pytest

from protocol.playground.page import FILES, Page, load_page

AT_ROOT = load_page("./")


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
    parser.feed(AT_ROOT.body.decode())
    return parser


def rules(page: Page) -> dict[str, str]:
    """The directives of a page's policy, by name."""
    return dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))


@pytest.mark.parametrize("kind", ["script", "style"])
def test_the_policy_allows_the_only_script_and_style(kind: str, elements: _Elements) -> None:
    """The hash is that of what a browser reads between the tags."""
    [content] = elements.contents[kind]
    digest = b64encode(hashlib.sha256(content.encode()).digest()).decode()
    assert rules(AT_ROOT)[f"{kind}-src"] == f"'sha256-{digest}'"


def test_the_policy_allows_nothing_else() -> None:
    others = {name: value for name, value in rules(AT_ROOT).items() if name not in ("script-src", "style-src")}
    assert others == {
        "default-src": "'none'", "img-src": "data:", "connect-src": "'self'", "base-uri": "'none'",
        "form-action": "'none'", "frame-ancestors": "'none'", "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }  # fmt: skip


def test_nothing_is_loaded_from_elsewhere(elements: _Elements) -> None:
    loaded = [value for _, name, value in elements.attributes if name in ("src", "srcset", "href", "action", "data")]
    assert loaded == ["data:,", "#main", "docs", "openapi.json"]
    # An address that is shown or made, such as that of this server, is none of these.
    assert not re.findall(r"https?:|//\w+\.\w+|@import|\burl\(", AT_ROOT.body.decode())


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
    document = AT_ROOT.body.decode()
    assert not [name for name in ("style", "script", "server") if f"{{{name}}}" in document]
    assert document.count("</script>") == document.count("</style>") == 1
    [script] = elements.contents["script"]
    assert script.count("\nregisterView({") == len(set(re.findall(r'\n  id: "([\w-]+)"', script)))


@pytest.mark.parametrize("server", ["./", "../"])
def test_the_page_says_where_the_server_is(server: str) -> None:
    assert f'<body data-server="{server}">'.encode() in load_page(server).body
    assert rules(load_page(server)) == rules(AT_ROOT)


@pytest.mark.parametrize(
    ("file", "changed"), [("style.css", ["style-src"]), ("views/chat.js", ["script-src"]), ("page.html", [])]
)
def test_the_tag_and_the_policy_change_with_the_files(file: str, changed: list[str], tmp_path: Path) -> None:
    same, other = (Path(shutil.copytree(FILES, tmp_path / name)) for name in ("same", "other"))
    (other / file).write_text((other / file).read_text() + "\n")
    assert load_page("./", same) == AT_ROOT
    page = load_page("./", other)
    assert [name for name, value in rules(page).items() if value != rules(AT_ROOT)[name]] == changed
    assert re.fullmatch(r'W/"[0-9a-f]{32}"', page.headers["etag"])
    assert page.headers["etag"] != AT_ROOT.headers["etag"]
