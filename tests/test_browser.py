"""The browser of the playground's tests notices what a page must not do, and draws its text in the fonts unpacked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.browser import Visit, needs_browser, open_browser
from tests.debian import UNPACKED

pytestmark = [pytest.mark.slow, needs_browser()]

ORIGIN = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<h1>Nothing</h1>", None),
        ("<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>", None),
        ("<script>console.error('broken')</script>", "console: broken"),
        ("<script>undefined_name</script>", "exception: undefined_name is not defined"),
        ("<script>fetch('http://other.test/x').catch(() => 0)</script>", "request: http://other.test/x"),
        ("<script>alert('hello')</script>", "dialog: hello"),
        (
            "<meta http-equiv='Content-Security-Policy' content=\"img-src 'none'\"><img src='data:image/gif,'>",
            "Content Security Policy",
        ),
    ],
)
def test_a_visit_notes_what_a_page_must_not_do(body: str, fault: str | None, browser: Browser) -> None:
    with Visit(browser, ORIGIN) as visit:
        visit.page.set_content(body)
        visit.page.wait_for_load_state("networkidle")
    assert [str(fault) in noted for noted in visit.faults[:1]] == ([] if fault is None else [True]), visit.faults


@pytest.mark.skipif(not (UNPACKED / "usr/share/fonts").exists(), reason="the fonts are not unpacked")
@pytest.mark.parametrize(
    ("family", "font"), [("system-ui", "Inter"), ("sans-serif", "Inter"), ("monospace", "DejaVu Sans Mono")]
)
def test_text_has_the_font(family: str, font: str, browser: Browser) -> None:
    with Visit(browser, ORIGIN) as visit:
        visit.page.set_content(f"<p style='font-family: {family}'>Text</p>")
        session = visit.context.new_cdp_session(visit.page)
        session.send("DOM.enable")
        session.send("CSS.enable")
        root = session.send("DOM.getDocument")["root"]["nodeId"]
        node = session.send("DOM.querySelector", {"nodeId": root, "selector": "p"})["nodeId"]
        [used] = session.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
    assert used["familyName"].startswith(font)
