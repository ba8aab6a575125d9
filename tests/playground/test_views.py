"""What a user sees of each task's answer, against the server's own answer to the same request."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser import needs_browser
from tests.playground.conftest import MODELS, VIEWS, OpenWorkbench
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, needs_browser()]

Ask = Callable[..., Workbench]


def test_every_view_is_in_the_tests(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open()
    found = []
    for model in MODELS:
        bench.choose(model)
        found += [(model, view) for view in bench.views()]
    assert sorted(found) == sorted(VIEWS)


@pytest.fixture(params=["mouse", "keys"])
def ask(request: pytest.FixtureRequest, workbenches: OpenWorkbench, server: ServerProcess) -> Ask:
    """A page that shows an answer: `ask("sentiment", Text="I love this.")`, once by mouse and once by keys alone."""

    def show(model: str, **texts: str) -> Workbench:
        bench = workbenches(server)
        bench.open()
        by_keys = request.param == "keys"
        bench.choose_by_keys(model) if by_keys else bench.choose(model)
        for label, text in texts.items():
            if by_keys:
                bench.type_by_keys(bench.field(label), text)
            else:
                bench.field(label).fill(text)
        if by_keys:
            bench.page.keyboard.press("Control+Enter")
            bench.wait()
        else:
            bench.send()
        assert bench.exchanges[-1].status == 200
        expect(bench.fact("Latency")).to_contain_text("ms")
        # Pairs of texts have other tokens than the texts have.
        expect(bench.fact("Input")).to_have_count(0 if model == "qa" else 1)
        return bench

    return show


def rows(bench: Workbench) -> list[tuple[str, str]]:
    """The label of each bar, and its score as it is written."""
    shown = bench.answer.locator("table.bars tbody tr")
    return [(row.locator("th").inner_text(), row.locator(".score").inner_text()) for row in shown.all()]


def lengths(bench: Workbench) -> list[float]:
    """The share of its track that each bar fills."""
    measured: list[float] = bench.answer.locator(".bar").evaluate_all(
        """(bars) => bars.map((bar) => {
          const style = getComputedStyle(bar.parentElement);
          const whole = bar.parentElement.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
          return bar.getBoundingClientRect().width / whole;
        })"""
    )
    return measured


def marks(bench: Workbench, text: str) -> list[tuple[int, int]]:
    """Where the marked parts of a text begin and end, in characters; what is shown has to be the text, but for labels."""
    pieces: list[tuple[bool, str]] = bench.answer.locator(".passage").evaluate(
        """(passage) => [...passage.childNodes].map((node) => [
          node.nodeName === "MARK", [...node.childNodes].filter((each) => each.nodeType === 3).map((each) => each.data).join("")
            || (node.nodeType === 3 ? node.data : ""),
        ])"""
    )
    assert "".join(piece for _, piece in pieces) == text
    found, position = [], 0
    for is_marked, piece in pieces:
        if is_marked:
            found.append((position, position + len(piece)))
        position += len(piece)
    return found


def written(score: float) -> str:
    return f"{score:.4f}" if abs(score) >= 0.00005 else f"{score:.1e}".replace("e-0", "e-")


# Pairs of texts have special tokens of their own, which no call of the server counts.
PAIRED = {("qa", ""), ("nli", "zero-shot"), ("nli", "classification"), ("rerank", "classification")}


@pytest.mark.parametrize(("model", "view"), VIEWS)
def test_input_tokens_are_told_where_they_are_exact(
    model: str, view: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open(model, view)
    if model == "chat":
        bench.limit_tokens(2)
    bench.send()
    bench.page.wait_for_load_state("networkidle")
    expect(bench.fact("Input")).to_have_count(0 if (model, view) in PAIRED else 1)


@pytest.mark.parametrize(("words", "note"), [(510, ""), (511, "; the model reads at most 512 at once")])
def test_texts_that_are_longer_than_the_model_reads(
    words: int, note: str, workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    bench.field("Text").fill("good " * words)
    bench.send()
    # Each word is a token; the text has two special ones.
    expect(bench.fact("Input")).to_have_text(f"{words + 2} tokens{note}")


@pytest.mark.parametrize("text", ["I love this.", "What a waste of time.", "<b>Fine</b> &amp; 😀"])
def test_classification_is_bars(text: str, ask: Ask) -> None:
    bench = ask("sentiment", Text=text)
    assert bench.exchanges[-1].body == {"inputs": text}
    [scores] = bench.repeat()
    assert rows(bench) == [(each["label"], written(each["score"])) for each in scores]
    # A bar is never thinner than its round ends.
    assert lengths(bench) == pytest.approx([each["score"] for each in scores], abs=0.05)


@pytest.mark.parametrize(
    ("text", "entities"),
    [
        ("Anna flew to Oslo.", ["Anna", "Oslo"]),
        # Characters of two and of several units of UTF-16.
        ("😀 👩‍👩‍👧 Anna flew to Oslo 🎉 with Peter.", ["Anna", "Oslo", "Peter"]),
        ("Anna & <Olga>", ["Anna", "Olga"]),
        ("It rains.", []),
    ],
)
def test_entities_are_marked_in_the_text(text: str, entities: list[str], ask: Ask) -> None:
    bench = ask("ner", Text=text)
    found = bench.repeat()
    assert marks(bench, text) == [(each["start"], each["end"]) for each in found]
    assert [text[start:end] for start, end in marks(bench, text)] == entities
    labels = bench.answer.locator("mark .label").all_inner_texts()
    assert labels == [each["entity_group"] for each in found]
    table = bench.answer.locator("tbody tr").all_inner_texts()
    assert table == [f"{each['word']}\t{each['entity_group']}\t{written(each['score'])}" for each in found]


def test_marks_are_read_aloud_as_words_and_copied_as_the_text(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    """Screen readers say "Anna, PER", not "AnnaPER"; a copied text has neither."""
    bench = workbenches(server)
    bench.open("ner")
    bench.field("Text").fill("Anna flew to Oslo.")
    bench.send()
    expect(bench.answer.locator("mark").first).to_have_text("Anna, PER")
    bench.answer.locator(".passage").evaluate("(passage) => getSelection().selectAllChildren(passage)")
    assert bench.page.evaluate("() => getSelection().toString()") == "Anna flew to Oslo."


def test_candidates_fill_the_gaps(ask: Ask) -> None:
    bench = ask("bert", **{"Text with gaps": "The capital of [MASK] is [MASK]."})
    gaps = bench.repeat()
    best = [candidates[0]["token_str"] for candidates in gaps]
    passage = bench.answer.locator(".passage")
    expect(passage).to_have_text(f"The capital of {best[0]} is {best[1]}.")
    assert rows(bench) == [(each["token_str"], written(each["score"])) for gap in gaps for each in gap]
    other = gaps[1][2]["token_str"]
    bench.answer.get_by_role("table").nth(1).get_by_role("button", name=other, exact=True).click()
    expect(passage).to_have_text(f"The capital of {best[0]} is {other}.")
    bench.page.get_by_role("button", name="Use this text").click()
    expect(bench.field("Text with gaps")).to_have_value(f"The capital of {best[0]} is {other}.")


def test_answers_are_marked_in_the_context(ask: Ask) -> None:
    context = "🏔️ Sarah lives in Munich. She works in Berlin."
    bench = ask("qa", Question="Where does Sarah live?", Context=context)
    found = bench.repeat()
    assert len(found) > 1
    assert rows(bench) == [(each["answer"], written(each["score"])) for each in found]
    assert marks(bench, context) == [(found[0]["start"], found[0]["end"])]
    bench.answer.locator("table.bars").get_by_role("button").nth(1).click()
    assert marks(bench, context) == [(found[1]["start"], found[1]["end"])]
    # Answers are longer than labels.
    candidates = bench.answer.locator("table.bars tbody th").first
    assert candidates.evaluate("(head) => head.offsetWidth > head.nextElementSibling.offsetWidth")


def test_labels_are_edited(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """With keys alone: Enter and commas add labels, Backspace and the labels' buttons remove them."""
    bench = workbenches(server)
    bench.open("nli", "zero-shot")
    bench.type_by_keys(bench.field("Text"), "The film was great.")
    adder = bench.field("Add a label")
    bench.tab_to(adder)
    for _ in range(3):
        bench.page.keyboard.press("Backspace")
    for text in ("praise", "blame", "news"):
        bench.page.keyboard.insert_text(text)
        bench.page.keyboard.press("Enter" if text != "blame" else ",")
    bench.page.get_by_role("button", name="Remove news").focus()
    bench.page.keyboard.press("Enter")
    bench.page.keyboard.press("Control+Enter")
    bench.wait()
    assert bench.exchanges[-1].body["parameters"]["candidate_labels"] == ["praise", "blame"]
    found = bench.repeat()
    assert rows(bench) == [(each["label"], written(each["score"])) for each in found]
    bench.field("Several labels may be true").check()
    bench.send()
    assert rows(bench) == [(each["label"], written(each["score"])) for each in bench.repeat()]


def test_similarities_are_a_heat_map(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("embed", "similarity")
    bench.page.get_by_role("button", name="Remove text 4").click()
    bench.page.get_by_role("button", name="Add text").click()
    expect(bench.field("text 4")).to_be_focused()
    bench.page.keyboard.insert_text("Where is Sarah's home?")
    bench.send()
    vectors = np.array([each["embedding"] for each in bench.repeat()["data"]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    cells = bench.answer.locator("table.heat tbody td").all_inner_texts()
    assert [float(cell) for cell in cells] == pytest.approx(cosines.ravel(), abs=0.0051)
    expect(bench.answer.get_by_role("columnheader", name="Text")).to_have_css("text-align", "left")
    one, other = max(itertools.combinations(range(4), 2), key=lambda pair: cosines[pair])
    expect(bench.page.get_by_role("status").filter(has_text="Answer after")).to_contain_text(
        f"The most similar are text {one + 1} and text {other + 1}: {cosines[one, other]:.2f}"
    )
    assert len(bench.exchanges[-1].body["input"]) == 4
    expect(bench.fact("Input")).to_have_text(re.compile(r"^\d+ tokens$"))


def test_a_large_heat_map_is_square_and_its_texts_stay_in_sight(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server, viewport={"width": 360, "height": 640})
    bench.open("embed", "similarity")
    for position in range(5, 24):
        bench.page.get_by_role("button", name="Add text").click()
        bench.page.keyboard.insert_text(f"This is text {position}, which is as long as many others are.")
    bench.send()
    expect(bench.answer.locator("table.heat tbody td")).to_have_count(20 * 20)
    bench.page.get_by_role("button", name="Show all 23 texts").click()
    expect(bench.answer.locator("table.heat tbody td")).to_have_count(23 * 23)
    scrolling = bench.answer.get_by_role("group", name="Similarity of the texts")
    expect(scrolling).to_be_focused()
    scrolling.evaluate("(box) => (box.scrollLeft = box.scrollWidth)")
    names = scrolling.locator("tbody th")
    expect(names.nth(22)).to_contain_text("23")
    assert (
        names.first.evaluate(
            "(name) => name.getBoundingClientRect().left - name.closest('.scroll').getBoundingClientRect().left"
        )
        == 0
    )


@pytest.mark.parametrize("model", ["rerank", "embed"])
def test_documents_are_sorted(model: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open(model, "rerank")
    bench.field("Query").fill("Where does Anna live?")
    bench.field("document 1").fill("Anna lives in Oslo.")
    bench.send()
    documents = bench.exchanges[-1].body["documents"]
    results = bench.repeat()["results"]
    shown = bench.answer.locator("ol.ranking > li")
    assert shown.locator("p").all_inner_texts() == [documents[each["index"]] for each in results]
    assert shown.locator(".score").all_inner_texts() == [written(each["relevance_score"]) for each in results]
    assert results[0]["index"] == 0


def test_tokens_have_weights_and_names(ask: Ask) -> None:
    bench = ask("splade", Text="The capital of France is Paris.")
    [weights] = bench.repeat()["predictions"]
    best = sorted((each["value"] for each in weights), reverse=True)
    expect(bench.answer.locator("table.bars th", has_text="paris")).to_have_count(1)
    assert [float(score) for _, score in rows(bench)] == pytest.approx(best, abs=0.0001)


def test_all_rows_are_shown_on_demand(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The first of them gets the focus, which the button had."""
    bench = workbenches(server)
    bench.open("splade")
    bench.page.locator("main summary", has_text="Options").click()
    bench.field("Number of weights").fill("600")
    bench.send()
    [weights] = bench.repeat()["predictions"]
    shown = bench.answer.locator("table.bars tbody tr")
    expect(shown).to_have_count(20)
    bench.page.get_by_role("button", name=f"Show all {len(weights)} tokens").press("Enter")
    expect(shown.nth(20)).to_be_focused()
    expect(shown).to_have_count(len(weights))


def test_a_text_becomes_another(ask: Ask) -> None:
    bench = ask("translator", Text="one two three")
    expect(bench.answer.locator(".passage")).to_have_text("uno dos tres")


def test_a_chat_streams(ask: Ask) -> None:
    """Words appear before the answer ends, and the next message is asked with what was said before."""
    bench = ask("chat", Message="Sarah lives in Munich. Where does Sarah live?")
    [user, assistant] = bench.answer.locator(".turn p").all_inner_texts()
    assert user == "Sarah lives in Munich. Where does Sarah live?"
    assert "Munich" in assistant
    expect(bench.fact("First token")).to_contain_text("ms")
    expect(bench.fact("Output")).to_contain_text("tokens")
    bench.field("Message").fill("Thank you.")
    bench.send()
    said = [each["content"] for each in bench.exchanges[-1].body["messages"]]
    assert said == [user, assistant, "Thank you."]
    bench.page.get_by_role("button", name="New conversation").click()
    expect(bench.answer.locator(".turn")).to_have_count(0)


def begin_story(bench: Workbench) -> None:
    """Ask for a long answer, and wait for some pieces of it."""
    bench.open("chat", "chat")
    bench.limit_tokens(1500)
    bench.field("Message").fill("Write a long story about a fox and a dog.")
    lengths = bench.page.evaluate_handle(
        """() => {
          const lengths = new Set();
          const note = () => lengths.add(document.querySelector(".turn.assistant p")?.textContent.length ?? 0);
          new MutationObserver(note).observe(document.querySelector("main"), { subtree: true, childList: true, characterData: true });
          return lengths;
        }"""
    )
    bench.send_button.click()
    bench.page.wait_for_function("(lengths) => lengths.size > 4", arg=lengths)


def test_a_chat_is_stopped(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """What was said stays, and the server computes no more."""
    before = cancelled(server)
    bench = workbenches(server)
    begin_story(bench)
    bench.page.get_by_role("button", name="Stop").click()
    bench.wait()
    expect(bench.answer).to_contain_text("You stopped it.")
    text = bench.answer.locator(".turn.assistant p").first.inner_text()
    assert text
    expect(bench.page.get_by_role("button", name="Stop")).to_be_hidden()
    wait_until(lambda: cancelled(server) == before + 1)
    assert bench.answer.locator(".turn.assistant p").first.inner_text() == text


def test_a_chat_goes_on_while_the_user_looks_at_another_model(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    begin_story(bench)
    words = bench.answer.locator(".turn.assistant p").first
    before = words.inner_text()
    bench.choose("sentiment")
    bench.send()
    expect(bench.fact("Latency")).to_contain_text("ms")
    bench.choose("chat")
    expect(bench.answer).to_have_attribute("aria-busy", "true")
    after = words.inner_text()
    assert after.startswith(before)
    assert len(after) > len(before)
    bench.page.get_by_role("button", name="Stop").click()


def cancelled(server: ServerProcess) -> float:
    """How many requests' clients left."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("runtime_cancelled_requests_total{"))


def test_the_error_of_a_stream_is_seen_at_once(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """Also below a prompt that fills the window; nothing is said to be continued."""
    bench = workbenches(server)
    bench.open("chat", "completion")
    bench.field("Text").fill("Once more. " * 1000)
    bench.send()
    assert bench.exchanges[-1].status == 400
    expect(bench.alert).to_contain_text("2048")
    expect(bench.alert).to_be_in_viewport()
    expect(bench.answer.locator(".passage")).to_be_hidden()
    expect(bench.answer).not_to_contain_text("interrupted")
    bench.visit.expect_fault("status of 400")


def test_a_text_is_continued(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open("chat", "completion")
    bench.field("Text").fill("The capital of France is")
    bench.send()
    continued = bench.answer.locator(".passage").inner_text()
    assert continued.startswith("The capital of France is Paris")


def test_the_continuation_of_a_long_text_is_in_sight(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """After the end of the text; characters are never cut apart."""
    bench = workbenches(server)
    bench.open("chat", "completion")
    bench.limit_tokens(4)
    text = "😀 " * 300 + "The capital of France is"
    bench.field("Text").fill(text)
    bench.send()
    assert bench.exchanges[-1].body["prompt"] == text
    passage = bench.answer.locator(".passage")
    expect(passage).to_contain_text(f"…{text[-300:]}")
    expect(passage.locator("mark")).to_be_in_viewport()
    expect(bench.answer).to_contain_text("Stopped at the maximum of 4 tokens.")


def test_a_conversation_that_is_too_long(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    """The figures are those of its last answer, and the advice is of a new one."""
    bench = workbenches(server)
    bench.open("chat", "chat")
    conversation = bench.page.get_by_role("region", name="Conversation")
    expect(conversation.get_by_text("Figures of the last answer")).to_be_hidden()
    bench.limit_tokens(2)
    bench.send()
    expect(conversation.get_by_role("group", name="Messages").locator(".turn")).to_have_count(2)
    expect(conversation.get_by_text("Figures of the last answer")).to_be_visible()
    bench.field("Message").fill("Once more. " * 1000)
    bench.send()
    expect(bench.alert).to_contain_text("start a new one")
    expect(bench.alert).to_be_in_viewport()
    bench.page.get_by_role("button", name="New conversation").click()
    expect(bench.alert).to_have_count(0)
    expect(conversation.get_by_text("Figures of the last answer")).to_be_hidden()
    bench.visit.expect_fault("status of 400")
