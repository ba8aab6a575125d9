"""The playground's page: its files in one document, which loads nothing else, and the headers that hold it to that."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILES = Path(__file__).with_name("static")
# They run in this order and share one scope: what all views use, the views, and what starts them.
_SCRIPTS = (
    "elements.js", "requests.js", "snippets.js", "parts.js", "lists.js", "generation.js", "views.js", "views/*.js",
    "form.js", "output.js", "code.js", "workbench.js", "application.js",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """The document, encoded, and the headers of its answers."""

    body: bytes
    headers: dict[str, str]


@cache
def load_page(server: str, folder: Path = FILES) -> Page:
    """Read the page's files; once, since they are a part of the program.

    Args:
        server: where the server is from the page's address with a slash at its end: "./" or "../".
        folder: where the files are.
    """
    style = (folder / "style.css").read_text(encoding="utf-8")
    paths = [path for pattern in _SCRIPTS for path in sorted(folder.glob(pattern))]
    script = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    document = (folder / "page.html").read_text(encoding="utf-8").replace("{server}", server)
    body = document.replace("{style}", style).replace("{script}", script).encode()
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": _content_security_policy(style, script),
        # Weak, because answers may be compressed.
        "etag": f'W/"{hashlib.sha256(body).hexdigest()[:32]}"',
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Page(body, headers)


def _content_security_policy(style: str, script: str) -> str:
    """A policy under which the page runs this style and this script, and calls this server. https://www.w3.org/TR/CSP3/

    No text that it shows can become markup or code: nothing else runs, and the browser parses no string as HTML.
    """
    rules = {
        "default-src": "'none'",
        "script-src": _hash_source(script),
        "style-src": _hash_source(style),
        "img-src": "data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def _hash_source(content: str) -> str:
    return f"'sha256-{b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
