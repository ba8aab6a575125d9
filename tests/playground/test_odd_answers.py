"""Answers that the models of the demo do not give: the browser gets them in place of the server's."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import Route, expect

from tests.browser import needs_browser
from tests.playground.answers import Answer, answer_in_turn, stream
from tests.playground.conftest import MODELS, OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess

pytestmark = [pytest.mark.slow, needs_browser()]

RIGHT_TO_LEFT = "\u202e"


def _word(text: str, reason: str | None = None) -> dict[str, Any]:
    """An event of a chat's answer, and of a continuation."""
    return {"choices": [{"delta": {"content": text}, "text": text, "finish_reason": reason}]}


WHOLE = stream(_word("Whole", "stop"), "[DONE]")


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
    answer_in_turn(bench.page, path, {"json": answer})
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
    answer_in_turn(bench.page, "v1/rerank", {"json": {"results": results}})
    answer_in_turn(
        bench.page, "models/sentiment", {"json": [[{"label": str(score), "score": score} for score in scores]]}
    )
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
    answer_in_turn(bench.page, path, {"json": answer})
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


LISTS = [
    ({"json": {"data": None}}, "No list of models"),
    ({"json": {"data": []}}, "No models"),
    ({"body": "<h1>proxy</h1>"}, "No list of models"),
    ({"status": 502, "content_type": "text/html", "body": "<h1>proxy</h1>"}, "No list of models"),
    ({"status": 401, "json": {"error": "no key"}}, "This server asks for a key"),
]


@pytest.mark.parametrize(("answer", "title"), LISTS)
def test_lists_that_are_none(answer: Answer, title: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    answer_in_turn(bench.page, "v1/models", answer)
    bench.open()
    expect(bench.page.locator("h1")).to_have_text(title)
    expect(bench.page.locator("main")).not_to_contain_text("<h1>")
    if answer.get("status"):
        bench.visit.expect_fault(f"status of {answer['status']}")


def test_a_card_without_capabilities(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    answer_in_turn(bench.page, "v1/models", {"json": {"data": [{"id": "bare", "task": "text_embedding"}]}})
    bench.open()
    expect(bench.page.locator("main")).to_contain_text("This page has no view for the model.")


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


def test_a_chat_that_breaks_off(chat: Workbench) -> None:
    """The part that came is shown until the message is sent once more, and is no part of what the model gets."""
    broken = stream(_word("Hello par"), {"error": {"message": "Overloaded.", "code": 503}})
    bodies = answer_in_turn(chat.page, "v1/chat/completions", broken, WHOLE)
    chat.send()
    expect(chat.page.locator(".turn.assistant")).to_contain_text("Hello par")
    expect(chat.page.locator(".turn.assistant")).to_contain_text("The answer was interrupted.")
    expect(chat.alert).to_contain_text("Overloaded.")
    expect(chat.field("Message")).to_have_value("One.")
    chat.send()
    assert bodies[1] == bodies[0]
    expect(chat.page.locator(".turn")).to_have_count(2)
    expect(chat.page.locator(".turn.assistant")).not_to_contain_text("Hello par")
    expect(chat.field("Message")).to_have_value("")


BROKEN = [
    (stream(_word("Once")), "broke off"),
    (stream(_word("Once"), {"error": {"message": "Full.", "code": "x"}}), "Full."),
    ({"status": 503, "json": {"error": "Busy."}}, "Busy."),
    (stream("{"), "not JSON"),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
@pytest.mark.parametrize(("view", "path"), [("chat", "v1/chat/completions"), ("completion", "v1/completions")])
def test_a_broken_answer_is_asked_for_again(
    view: str, path: str, broken: Answer, message: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """The same request goes out, and nothing of the broken answer stays."""
    bench = workbenches(server)
    bodies = answer_in_turn(bench.page, path, broken, WHOLE)
    bench.open("chat", view)
    bench.send()
    expect(bench.alert).to_contain_text(message)
    expect(bench.fact("Request")).to_contain_text("playground-")
    if broken.get("status"):
        bench.visit.expect_fault(f"status of {broken['status']}")
    bench.page.get_by_role("button", name="Try again").click()
    expect(bench.alert).to_have_count(0)
    expect(bench.answer).to_contain_text("Whole")
    expect(bench.answer).not_to_contain_text("Once")
    expect(bench.answer).not_to_contain_text("interrupted")
    assert bodies[1] == bodies[0]
    if view == "chat":
        expect(bench.answer.locator(".turn")).to_have_count(2)


# What a user reads about an error, and whether the same request may succeed later.
ADVICE = [
    ({"status": 403}, "The key does not allow this.", False),
    ({"status": 404}, "the model may be gone", False),
    ({"status": 413}, "Send less", False),
    ({"status": 418}, "the request id", False),
    ({"status": 422}, "Change the inputs as the message says.", False),
    ({"status": 429, "headers": {"retry-after": "7"}}, "Try again in 7 s.", True),
    ({"status": 429}, "Try again in a moment.", True),
    ({"status": 500}, "the request id", True),
    ({"status": 503, "headers": {"retry-after": "20"}}, "Try again in 20 s.", True),
    ({"status": 504}, "The model took too long.", True),
]


@pytest.mark.parametrize(("answer", "advice", "may_succeed"), ADVICE)
def test_advice(
    answer: Answer, advice: str, may_succeed: bool, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    answer_in_turn(bench.page, "models/sentiment", {"json": {"error": "Refused."}, **answer})
    bench.send()
    expect(bench.alert).to_contain_text(f"Error {answer['status']}")
    expect(bench.alert).to_contain_text("Refused.")
    expect(bench.alert).to_contain_text(advice)
    expect(bench.alert.get_by_role("button", name="Try again")).to_have_count(int(may_succeed))
    bench.visit.expect_fault(f"status of {answer['status']}")


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("", "(empty)"),
        (" ", "␣"),
        ("  ", "␣ ␣"),
        ("\n", "U+000A"),
        ("\u200b", "U+200B"),
        (" a", "a"),
        ("<mark>", "<mark>"),
    ],
)
def test_names_of_tokens_are_seen(token: str, name: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """On the buttons of candidates, and where tokens have weights."""
    bench = workbenches(server)
    bench.open("bert")
    answer_in_turn(bench.page, "models/bert", {"json": [{"token_str": token, "score": 0.5}]})
    bench.send()
    expect(bench.answer.locator("table").get_by_role("button", name=name, exact=True)).to_be_visible()
    bench.choose("splade")
    weights = {"predictions": [[{"index": 5, "value": 0.5}]]}
    answer_in_turn(bench.page, "v1/models/splade:predict", {"json": weights})
    answer_in_turn(bench.page, "decode?*", {"json": [token]})
    bench.send()
    expect(bench.answer.get_by_role("rowheader", name=name, exact=True)).to_be_visible()


@pytest.mark.parametrize(
    ("text", "token", "filled"),
    [
        ("The capital of France is <mask>.", " Paris", "The capital of France is Paris."),
        ("<mask> is in France.", " Paris", "Paris is in France."),
        ("He said:<mask>", " no", "He said: no"),
        ("Two capital<mask>.", "##s", "Two capitals."),
    ],
)
def test_another_mask(text: str, token: str, filled: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Tokens that begin a word may have a space before them, parts of words have `##`."""
    bench = workbenches(server)
    answer_in_turn(bench.page, "models/bert", {"json": [{"token_str": token, "score": 0.5}]})
    # The last one first.
    answer_in_turn(bench.page, "v2/models/bert", {"json": {"properties": {"mask_token": "<mask>"}}})
    bench.open("bert")
    expect(bench.field("Text with gaps")).to_have_value("The capital of France is <mask>.")
    expect(bench.code).to_contain_text("<mask>")
    bench.field("Text with gaps").fill("")
    for piece in text.partition("<mask>"):
        if piece == "<mask>":
            bench.page.get_by_role("button", name="Insert <mask>").click()
        else:
            bench.page.keyboard.insert_text(piece)
    bench.send()
    assert bench.exchanges[-1].body["inputs"] == text
    expect(bench.answer.locator(".passage")).to_have_text(filled)


def test_a_mask_that_is_told_late_changes_no_text_of_the_user(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    held: list[Route] = []
    bench.page.route("**/v2/models/bert", lambda route: held.append(route))
    bench.open("bert")
    bench.field("Text with gaps").fill("It is [MASK].")
    held[0].fulfill(json={"properties": {"mask_token": "<mask>"}})
    expect(bench.page.get_by_role("button", name="Insert <mask>")).to_be_visible()
    expect(bench.field("Text with gaps")).to_have_value("It is [MASK].")


@pytest.mark.parametrize(
    ("spans", "marked"),
    [
        ([(11, 16), (31, 37)], ["Sarah", "Munich"]),
        ([(31, 37), (11, 16)], ["Sarah", "Munich"]),
        # Of spans that overlap, the first is marked.
        ([(11, 16), (14, 20), (16, 17)], ["Sarah", " "]),
        ([(None, None), (11, 16)], ["Sarah"]),
        ([(11, 11)], []),
    ],
)
def test_spans_of_any_order(
    spans: list[tuple[int | None, int | None]],
    marked: list[str],
    workbenches: OpenWorkbench,
    server: ServerProcess,
) -> None:
    """All entities are in the table, also those that are not marked."""
    entities = [
        {"entity_group": "X", "word": str(number), "score": 0.5, "start": start, "end": end}
        for number, (start, end) in enumerate(spans)
    ]
    bench = workbenches(server)
    bench.open("ner")
    answer_in_turn(bench.page, "models/ner", {"json": entities})
    bench.send()
    expect(bench.answer.locator("tbody tr")).to_have_count(len(spans))
    assert bench.answer.locator("mark").evaluate_all("(marks) => marks.map((mark) => mark.firstChild.data)") == marked
    copied = bench.answer.locator(".passage").evaluate(
        "(passage) => { getSelection().selectAllChildren(passage); return getSelection().toString(); }"
    )
    assert copied == "My name is Sarah and I live in Munich."
