"""The playground as its users find it: by the names of its controls, with a mouse or with keys alone."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
from playwright.sync_api import Locator, Page, Response, expect

from tests.browser import Visit

_LAST_TAB = 80
_ASIDE = re.compile(r"/v2/repository/|/tokenize\b|/decode\b")


@dataclass(frozen=True)
class Exchange:
    """A request that the page sent, and the status of its answer."""

    path: str
    body: Any
    status: int


class Workbench:
    """A visit of the playground.

    Attributes:
        exchanges: the requests of answers so far; the page also asks for the states of models, and for tokens.
    """

    def __init__(self, visit: Visit, path: str = "/playground") -> None:
        self.visit = visit
        self.page: Page = visit.page
        self.exchanges: list[Exchange] = []
        self._path = path
        self.page.on("response", self._note)

    def _note(self, response: Response) -> None:
        request = response.request
        path = request.url.removeprefix(self.visit.server)
        if request.post_data and not _ASIDE.search(path):
            self.exchanges.append(Exchange(path, json.loads(request.post_data), response.status))

    def open(self, model: str = "", view: str = "") -> None:
        """Load the page, at once with a model and one of its views."""
        chosen = urlencode({name: value for name, value in (("model", model), ("view", view)) if value})
        self.page.goto("about:blank")
        self.page.goto(f"{self._path}#{chosen}" if chosen else self._path)
        expect(self.page.locator("h1")).to_be_visible()

    @property
    def answer(self) -> Locator:
        return self.page.get_by_role("region", name=re.compile("^(Answer|Conversation)$"))

    @property
    def code(self) -> Locator:
        return self.page.get_by_role("region", name="Code for these inputs").locator("pre")

    @property
    def alert(self) -> Locator:
        """The message that screen readers say at once."""
        return self.page.get_by_role("alert").filter(has_text=re.compile(r"\S"))

    @property
    def send_button(self) -> Locator:
        return self.page.locator("main form button[type=submit]")

    def model(self, name: str) -> Locator:
        return self.page.locator(f"#models input[value={json.dumps(name, ensure_ascii=False)}]")

    def choose(self, name: str) -> None:
        """Choose a model with the mouse."""
        press(self.model(name))
        expect(self.page.locator("h1")).to_have_text(name)

    def views(self) -> list[str]:
        """The names of the views of the chosen model, as the page's address has them; an only one has no name."""
        if self.send_button.count() == 0:
            return []
        named = self.page.get_by_role("group", name="What to do").get_by_role("radio")
        return [each.get_attribute("value") or "" for each in named.all()] or [""]

    def key_field(self) -> Locator:
        """The field of the API key; it is unfolded first."""
        self.page.locator("#key-details").evaluate("(details) => { details.open = true; }")
        return self.page.get_by_label("Key, if the server asks for one")

    def open_reference(self) -> str:
        """Follow the link to the reference of the server's calls, and return its address."""
        with self.page.expect_popup() as opened:
            self.page.get_by_role("link", name="API reference").click()
        opened.value.wait_for_load_state()
        return opened.value.url

    def field(self, label: str) -> Locator:
        return self.page.locator("main").get_by_label(label, exact=True)

    def limit_tokens(self, most: int) -> None:
        """Let a generator answer with at most so many tokens."""
        self.page.locator("main summary", has_text="Options").click()
        self.field("Maximum tokens").fill(str(most))

    def fact(self, name: str) -> Locator:
        """A figure of the answer, such as its latency."""
        return self.answer.locator("dl > div").filter(has=self.page.get_by_text(name, exact=True)).locator("dd")

    def send(self) -> None:
        """Press the button, and wait for the answer's end."""
        self.send_button.click()
        self.wait()

    def wait(self) -> None:
        """Wait for the answer's end."""
        expect(self.answer).to_have_attribute("aria-busy", "false", timeout=60_000)

    def show_code(self, language: str) -> str:
        """Choose a language, and return the code of the request."""
        press(self.page.get_by_role("group", name="Language").get_by_role("radio", name=language, exact=True))
        return self.code.inner_text()

    def tab_to(self, control: Locator) -> None:
        """Press Tab until a control has the focus.

        Raises:
            AssertionError: keys do not reach it.
        """
        for _ in range(_LAST_TAB):
            if control.evaluate("element => element === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {control}")

    def choose_by_keys(self, name: str) -> None:
        """Choose a model with keys alone: Tab goes to the list of models, arrows through it."""
        chosen = self.page.locator("#models input:checked")
        self.tab_to(chosen)
        for _ in range(_LAST_TAB):
            if self.model(name).evaluate("element => element === document.activeElement"):
                break
            self.page.keyboard.press("ArrowDown")
        expect(self.page.locator("h1")).to_have_text(name)

    def type_by_keys(self, control: Locator, text: str) -> None:
        """Replace the text of a control with keys alone."""
        self.tab_to(control)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(text)

    def repeat(self) -> Any:
        """The server's own answer to the last request of the page, asked for once more without the page."""
        last = self.exchanges[-1]
        return httpx.post(self.visit.server + last.path, json=last.body, timeout=60).raise_for_status().json()


def press(radio: Locator) -> None:
    """Choose a radio button with the mouse, on its label: that may cover the button."""
    radio.locator("xpath=ancestor::label").click()


def set_value(control: Locator, text: str) -> None:
    """Set a field as typing does, at once; drivers cannot type long texts, nor halves of characters."""
    encoded = text.encode("utf-16-le", "surrogatepass")
    units = [int.from_bytes(encoded[at : at + 2], "little") for at in range(0, len(encoded), 2)]
    control.evaluate(
        """(control, units) => {
          control.value = units.map((unit) => String.fromCharCode(unit)).join("");
          control.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        units,
    )
