"""The pages for users, README.md and docs/, and the commands, programs and answers in them.

The conventions, which CONTRIBUTING.md names too:

- A `sh` block that starts a server (`make serve`, perhaps behind variables) is the server of the blocks that follow on
  its page, until another one.
- A `sh` or `python` block that asks that server is run; the `json` block right behind it is what it must print.
- `title="not tested: REASON"` in the info string of a block says that it is not run, and why; readers see it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from tests.servers import ROOT

DOCS = ROOT / "docs"
_BLOCK = re.compile(r"^(?P<indent> *)```(?P<info>[^\n`]*)\n(?P<text>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NOT_TESTED = re.compile(r'title="not tested: (?P<reason>[^"]+)"')
# Run by tests of their own, since they ask no server.
_OWN_TESTS = ("make demo", "make bento", "make test")
# What blocks of these languages hold is run.
_RUN = frozenset({"sh", "python"})


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    page: str
    language: str
    text: str
    reason: str | None

    @property
    def is_server(self) -> bool:
        words = [word for word in self.text.split() if "=" not in word]
        return self.language == "sh" and words[:2] == ["make", "serve"]

    @property
    def asks(self) -> bool:
        """Whether it is run against the server that its page has started."""
        run = self.language in _RUN and self.reason is None and not self.is_server
        return run and not self.text.startswith(_OWN_TESTS)


@dataclass(frozen=True, slots=True)
class Question:
    """What a reader is told to run against a server, and what it prints; None where the page does not show it."""

    page: str
    server: str
    command: Block
    answer: str | None


def page_names() -> list[str]:
    """All pages, relative to the repository."""
    return ["README.md", *sorted(str(path.relative_to(ROOT)) for path in DOCS.rglob("*.md"))]


def read_page(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def find_blocks(page: str, text: str) -> list[Block]:
    blocks = []
    for match in _BLOCK.finditer(text):
        language, _, options = match["info"].strip().partition(" ")
        reason = _NOT_TESTED.search(options)
        indent = len(match["indent"])
        body = "\n".join(line[indent:] for line in match["text"].splitlines()).strip()
        blocks.append(Block(page, language, body, reason and reason["reason"]))
    return blocks


def all_blocks() -> Iterator[Block]:
    for page in page_names():
        yield from find_blocks(page, read_page(page))


def find_questions(page: str, text: str) -> list[Question]:
    """The commands of one page that ask a server.

    Raises:
        ValueError: a block that is to be run has no server before it on its page.
    """
    questions, server = [], ""
    blocks = find_blocks(page, text)
    for position, block in enumerate(blocks):
        if block.is_server and block.reason is None:
            server = block.text
        elif block.asks:
            if not server:
                raise ValueError(f"{page}: no server is started before this block:\n{block.text}")
            following = blocks[position + 1] if position + 1 < len(blocks) else None
            answer = following.text if following is not None and following.language == "json" else None
            questions.append(Question(page, server, block, answer))
    return questions


def all_questions() -> list[Question]:
    """The commands of all pages, those of one server together, so that each is started once."""
    found = [question for page in page_names() for question in find_questions(page, read_page(page))]
    return sorted(found, key=lambda question: server_key(question.server))


def server_key(command: str) -> tuple[str, ...]:
    """The words of a server's command: two pages may write one command on several lines."""
    return tuple(shlex.split(command.replace("\\\n", " ")))
