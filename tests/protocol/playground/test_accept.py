"""Which clients get a page at the root."""

from __future__ import annotations

import pytest

from protocol.playground.accept import prefers_page

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
FIREFOX = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (CHROMIUM, True),
        (FIREFOX, True),
        ("text/html", True),
        ("TEXT/HTML; charset=utf-8", True),
        ("text/html, */*", True),
        ("text/html;level=1, */*;q=0.1", True),
        ("text/html;q=0.9, application/json;q=0.8", True),
        ("text/html;q=0.1, image/png", True),
        # A weight without its digit before the point.
        ("text/html;q=.2, application/json;q=.1", True),
        # curl and httpx; KServe's clients and fetch; probes of Kubernetes.
        ("*/*", False),
        ("application/json", False),
        ("", False),
        ("text/*", False),
        ("application/json, text/plain, */*", False),
        ("application/json, text/html", False),
        ("application/json, text/html;q=0.9, */*;q=0.1", False),
        ("text/html;q=0", False),
        ("text/html;q=0.000, */*", False),
        ("text/html;q=0.5, */*", False),
        ("text/html;q=2", False),
        ("text/html;q=x", False),
        ("text/html;q=.", False),
        ("text/htmlx, application/xhtml+xml", False),
        (";,;q=1,,", False),
        ("text/html," * 1000, False),
    ],
)
def test_clients_that_prefer_a_page(accept: str, expected: bool) -> None:
    assert prefers_page(accept) is expected
