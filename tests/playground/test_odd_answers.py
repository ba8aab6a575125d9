"""Answers that the models of the demo do not give: the browser gets them in place of the server's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser import needs_browser
from tests.playground.conftest import MODELS, OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

RIGHT_TO_LEFT = "\u202e"


def answer_with(page: Page, path: str, answer: Any) -> None:
    page.route(f"**/{path}", lambda route: route.fulfill(json=answer))


@pytest.mark.parametrize(
    ("model", "view", "path", "answer", "shown"),
    [
        ("sentiment", "", "models/sentiment", [[]], "No classes."),
        ("ner", "", "models/ner", [], "My name is Sarah and I live in Munich."),
        ("bert", "", "models/bert", [], "No candidates."),
        ("bert", "", "models/bert", [[]], "No candidates."),
        ("qa", "", "models/qa", [], "No answers."),
        ("nli", "zero-shot", "models/nli/pipeline/zero-shot-classification", [], "No labels."),
        ("splade", "", "v1/models/splade:predict", {"predictions": [[]]}, "No tokens."),
        (
            "translator",
            "",
            "models/translator/pipeline/text2text-generation",
            [{"generated_text": ""}],
            "The answer is empty.",
        ),
    ],
)
def test_empty_answers(
    model: str, view: str, path: str, answer: Any, shown: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, view)
    answer_with(bench.page, path, answer)
    bench.send()
    expect(bench.answer.get_by_text(shown)).to_be_visible()
    expect(bench.answer.locator("table")).to_have_count(0)


@pytest.mark.parametrize(
    ("scores", "shares"),
    [
        ([0.9, 0.5, 0.1], [0.9, 0.5, 0.1]),
        ([0.02, 0.01, 0.0], [0.02, 0.01, 0.0]),
        ([8.0, 4.0, 2.0], [1.0, 0.5, 0.25]),
        ([1.0, -2.0, -9.0], [1.0, 0.7, 0.0]),
        ([-1.0, -2.0, -4.0], [0.6, 0.4, 0.0]),
    ],
)
@pytest.mark.parametrize("model", ["rerank", "sentiment"])
def test_bars_are_longer_the_higher_the_score(
    model: str, scores: list[float], shares: list[float], workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, "rerank" if model == "rerank" else "")
    results = [{"index": index, "relevance_score": score} for index, score in enumerate(scores)]
    answer_with(bench.page, "v1/rerank", {"results": results})
    answer_with(bench.page, "models/sentiment", [[{"label": str(score), "score": score} for score in scores]])
    bench.send()
    widths = bench.answer.locator(".bar").evaluate_all(
        "(bars) => bars.map((bar) => Number(bar.style.getPropertyValue('--share')))"
    )
    assert widths == pytest.approx(shares)


@pytest.mark.parametrize(
    ("model", "path", "answer", "names"),
    [
        ("bert", "models/bert", [{"token_str": f"a{RIGHT_TO_LEFT}bc", "score": 0.5}], "mark"),
        (
            "ner",
            "models/ner",
            [{"entity_group": f"a{RIGHT_TO_LEFT}bc", "word": "Sarah", "score": 0.5, "start": 11, "end": 16}],
            "mark .label",
        ),
    ],
)
def test_a_text_turns_no_text_after_it(
    model: str, path: str, answer: Any, names: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """A label that ends in the direction of Hebrew or Arabic leaves what follows in its own."""
    bench = workbenches(server)
    bench.open(model)
    answer_with(bench.page, path, answer)
    bench.send()
    [following] = bench.answer.locator(names).evaluate_all(
        """(names) => names.slice(0, 1).map((name) => {
          // Two letters of its own, right after it.
          const text = document.createTextNode("xy");
          name.after(text);
          const left = (at) => {
            const range = new Range();
            range.setStart(text, at);
            range.setEnd(text, at + 1);
            return range.getBoundingClientRect().left;
          };
          return left(0) < left(1);
        })"""
    )
    assert following


def test_a_list_of_models_that_does_not_come(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.page.route("**/v1/models", lambda _: None)
    bench.open()
    expect(bench.alert).to_contain_text("The server did not answer within 15 s.")
    bench.page.unroute_all()
    bench.page.get_by_role("button", name="Refresh").click()
    expect(bench.page.locator("#models").get_by_role("radio")).to_have_count(len(MODELS))


@pytest.fixture
def chat(workbenches: OpenWorkbench, server: ServerProcess) -> Workbench:
    bench = workbenches(server)
    bench.open("chat", "chat")
    bench.limit_tokens(4)
    bench.field("Message").fill("One.")
    return bench


def test_a_chat_that_is_stopped_before_its_first_word(chat: Workbench) -> None:
    """The message is the user's again, and no turn is left."""
    # No answer comes.
    chat.page.route("**/v1/chat/completions", lambda _: None)
    chat.send_button.click()
    expect(chat.page.locator(".turn")).to_have_count(2)
    chat.page.get_by_role("button", name="Stop").click()
    chat.wait()
    expect(chat.page.locator(".turn")).to_have_count(0)
    expect(chat.field("Message")).to_have_value("One.")
    chat.page.unroute_all()
    chat.send()
    assert [each["content"] for each in chat.exchanges[-1].body["messages"]] == ["One."]
    expect(chat.page.locator(".turn")).to_have_count(2)


@pytest.mark.parametrize("again", ["Try again", "Send"])
def test_a_chat_that_breaks_off(again: str, chat: Workbench) -> None:
    """The part that came is shown until the message is sent once more, and is no part of what the model gets."""
    events = [{"choices": [{"delta": {"content": "Hello par"}}]}, {"error": {"message": "Overloaded.", "code": 503}}]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    chat.page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(content_type="text/event-stream", body=body), times=1
    )
    chat.send()
    expect(chat.page.locator(".turn.assistant")).to_contain_text("Hello par")
    expect(chat.page.locator(".turn.assistant")).to_contain_text("It broke off.")
    expect(chat.alert).to_contain_text("Overloaded.")
    expect(chat.field("Message")).to_have_value("One.")
    chat.page.get_by_role("button", name=again).click()
    chat.wait()
    first, second = (each.body["messages"] for each in chat.exchanges[-2:])
    assert second == first
    expect(chat.page.locator(".turn")).to_have_count(2)
    expect(chat.page.locator(".turn.assistant")).not_to_contain_text("Hello par")
    expect(chat.field("Message")).to_have_value("")
