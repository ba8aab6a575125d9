"""A real browser without a window: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Dialog, Page, Request, sync_playwright

from tests.debian import UNPACKED

_NAMES = ("chromium", "google-chrome", "chrome")
# Chromium's own wrapper, usr/bin/chromium, would look for the program in the machine's /usr.
_UNPACKED_PROGRAM = UNPACKED / "usr/lib/chromium/chromium"
_LIBRARIES = ("usr/lib/*-linux-gnu", "lib/*-linux-gnu", "usr/lib/*-linux-gnu/pulseaudio")
_OPTIONS = (
    # Users' sandboxes need a kernel's permission or a program of root's.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    # A page that asks for another host gets no answer, and the browser itself asks nobody.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    # Letters have the same shape on every machine.
    "--font-render-hinting=none",
)
# The fonts that `make debian-programs` unpacks, and the machine's where these are missing.
_FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{unpacked}/usr/share/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{folder}/font-cache</cachedir>
  <alias binding="strong"><family>system-ui</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="strong"><family>sans-serif</family><prefer><family>Inter</family></prefer></alias>
  <alias binding="strong"><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"""


def _environment() -> dict[str, str]:
    libraries = [str(folder) for pattern in _LIBRARIES for folder in UNPACKED.glob(pattern)]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)}


@cache
def find_browser() -> Path | None:
    """The program of Chromium; None if it is not here, or does not start."""
    installed = (shutil.which(name) for name in _NAMES)
    candidates = [_UNPACKED_PROGRAM, *(Path(program) for program in installed if program)]
    return next(filter(_starts, candidates), None)


def _starts(program: Path) -> bool:
    if not program.exists():
        return False
    return subprocess.run([program, "--version"], env=_environment(), capture_output=True, check=False).returncode == 0


def needs_browser() -> pytest.MarkDecorator:
    reason = "chromium is not here: `make debian-programs` unpacks it from Debian's package"
    return pytest.mark.skipif(find_browser() is None, reason=reason)


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A started browser. While it is open, its thread can run no other event loop.

    Args:
        folder: where it may write.
    """
    fonts = folder / "fonts.conf"
    fonts.write_text(_FONTS.format(unpacked=UNPACKED, folder=folder))
    environment: dict[str, str | float | bool] = {**_environment(), "FONTCONFIG_FILE": str(fonts), "HOME": str(folder)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), env=environment, args=_OPTIONS)
        yield browser
        browser.close()


class Visit:
    """A user's visit: a page in a new profile, and what went wrong in it.

    Attributes:
        page: the page, which is empty at first.
        faults: a line for each error on the console (among them violations of the Content-Security-Policy), exception
            that nothing caught, dialog, and request to another server.
    """

    def __init__(self, browser: Browser, server: str, **options: Any) -> None:
        """
        Args:
            server: the URL of the only server that the page may ask.
            options: of the new profile, such as `viewport`.
        """
        self.server = server
        self.faults: list[str] = []
        self.context: BrowserContext = browser.new_context(base_url=server, **options)
        self.context.on("request", self._note_request)
        self.context.on("console", self._note_message)
        self.context.on("weberror", lambda error: self.faults.append(f"exception: {error.error}"))
        self.context.on("dialog", self._note_dialog)
        self.page: Page = self.context.new_page()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def expect_fault(self, text: str) -> None:
        """Strike the faults that contain a text off the list.

        Raises:
            AssertionError: there is none.
        """
        others = [fault for fault in self.faults if text not in fault]
        assert len(others) < len(self.faults), f"no {text!r} in {self.faults}"
        self.faults = others

    def _note_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme != "data" and f"{url.scheme}://{url.netloc}" != self.server:
            self.faults.append(f"request: {request.url}")

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning", "assert"):
            self.faults.append(f"console: {message.text}")

    def _note_dialog(self, dialog: Dialog) -> None:
        self.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()
