"""Texts are answered as V1 answers them, and one that cannot be has an error of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pytest

from protocol.bulk.outputs import JsonOutput
from protocol.bulk.rows import RecordRows
from protocol.bulk.text_answerer import TextAnswerer
from runners.core.errors import InputError, RunnerError
from runners.core.predictions import TextInput
from tests.conftest import GeneratorFolder, Serve
from tests.protocol.conftest import Run
from tests.served import Served
from tests.v1 import predict

WORDS = ("the film was good", "a bad play in London", "", "é", "it rains, and Anna Smith went to Paris " * 9)
TEXTS = [WORDS[position % len(WORDS)] for position in range(700)]


def answer(
    served: Served, texts: Sequence[TextInput | InputError], parameters: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The rows that are written."""

    async def run() -> bytes:
        answerer = TextAnswerer(served.runner, parameters or {}, served.arguments)
        answers = await answerer.answer(texts)
        return JsonOutput(answerer.extra_names).render(RecordRows([{}] * len(texts), texts), answers)

    return [orjson.loads(line) for line in asyncio.run(run()).splitlines()]


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("sequence_classification", {}),
        ("sequence_classification", {"return_probabilities": True}),
        ("sequence_classification", {"return_raw_logits": True, "stream": False}),
        ("sequence_classification", {"top_k": 2}),
        ("multi_label", {"threshold": 0.3}),
        ("token_classification", {}),
        ("token_classification", {"return_probabilities": True}),
        ("token_classification", {"aggregation_strategy": "simple"}),
        ("text_embedding", {}),
        ("zero_shot_classification", {"candidate_labels": ["sport", "art"]}),
    ],
)
def test_answers_are_those_of_v1(kind: str, parameters: dict[str, Any], run: Run) -> None:
    served = run(kind)
    rows = answer(served, list(map(TextInput, TEXTS)), parameters)
    expected = predict(served.client, list(WORDS), **parameters)
    assert [row["prediction"] for row in rows] == [expected[position % len(WORDS)] for position in range(len(TEXTS))]


def test_masks_pairs_and_words(run: Run) -> None:
    masks = run("fill_mask")
    assert (
        answer(masks, [TextInput("the [MASK] film")], {"top_k": 2})[0]["prediction"]
        == predict(masks.client, ["the [MASK] film"], top_k=2)[0]
    )
    questions = run("question_answering")
    question = {"question": "who?", "context": "Anna went"}
    assert (
        answer(questions, [TextInput("who?", "Anna went")])[0]["prediction"] == predict(questions.client, [question])[0]
    )


def test_outputs_beside_the_prediction(run: Run) -> None:
    rows = answer(
        run("token_classification"), [TextInput("Anna went"), TextInput("a")], {"return_offsets_mapping": True}
    )
    assert [list(row) for row in rows] == [["prediction", "offset_mapping"]] * 2
    assert rows[1]["offset_mapping"] == [[0, 0], [0, 1], [0, 0]]
    [row] = answer(run("sequence_classification"), [TextInput("Anna went")], {"return_truncated_tokens": True})
    assert row["truncated_tokens"] == 0


def test_wrong_texts_fail_alone(run: Run) -> None:
    served = run("fill_mask")
    texts: list[TextInput | InputError] = [TextInput("the [MASK] film") for _ in range(600)]
    texts[3] = TextInput("no mask")
    texts[300] = TextInput("a [MASK]", words=("a", "[MASK]"))
    texts[301] = TextInput("x" * (served.arguments.max_text_characters + 1))
    texts[599] = InputError("line 599 is not JSON")
    rows = answer(served, texts)
    wrong = {position: row["error"] for position, row in enumerate(rows) if "error" in row}
    assert list(wrong) == [3, 300, 301, 599]
    assert wrong[3] == "it has no mask: write [MASK] where a word is to be filled in"
    assert wrong[300] == "the text is split into words, and fill_mask takes whole texts"
    assert wrong[301] == "1048577 characters of a text are more than the 1048576 that --max_text_characters allows"
    assert wrong[599] == "line 599 is not JSON"
    assert {row["prediction"] for position, row in enumerate(rows) if position not in wrong} == {rows[0]["prediction"]}


@pytest.mark.parametrize(
    "limits",
    [
        {"max_client_batch_size": 1},
        {"max_concurrent_requests": 1},
        {"max_request_characters": 400, "max_text_characters": 400},
        {"max_queue_characters": 400, "max_queue_tokens": 300},
        {"max_answer_numbers": 40, "return_probabilities": True},
    ],
)
def test_limits_of_requests_drop_no_text(limits: dict[str, Any], run: Run) -> None:
    served = run("sequence_classification", **limits)
    rows = answer(served, list(map(TextInput, TEXTS)))
    assert not [row for row in rows if "error" in row]


@pytest.mark.parametrize(
    ("kind", "parameters", "error"),
    [
        (
            "sequence_classification",
            {"top_k": 0},
            "the parameter top_k is wrong: Input should be greater than or equal to 1",
        ),
        (
            "sequence_classification",
            {"candidate_labels": ["a"]},
            "the parameter candidate_labels does not apply to sequence_classification",
        ),
        ("text_embedding", {"dimensions": 10**6}, "dimensions"),
        ("sequence_classification", {str(name): 1 for name in range(300)}, "300 parameters are more than the 256"),
    ],
)
def test_wrong_parameters_are_found_before_work(kind: str, parameters: dict[str, Any], error: str, run: Run) -> None:
    with pytest.raises(InputError, match=error):
        answer(run(kind), [TextInput("a")], parameters)


def test_unknown_parameters_are_named_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    rows = answer(run("text_embedding"), [TextInput("a")] * 3, {"topk": 3, "normalize": True, "stream": False})
    assert all("prediction" in row for row in rows)
    [said] = [record.getMessage() for record in caplog.records if record.name == "protocol.bulk.text_answerer"]
    assert said.startswith("the parameters topk are unknown and ignored; this model has ")
    assert "normalize" in said


@pytest.mark.parametrize(
    ("texts", "wrong", "error"),
    [
        (600, lambda text: True, r"none of 600 texts could be answered: an unexpected error, which the log has"),
        (600, lambda text: text == "text 5", None),
        (1, lambda text: True, None),
    ],
)
def test_a_fault_of_all_texts_ends_the_job(
    texts: int, wrong: Callable[[str], bool], error: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = run("sequence_classification")
    infer = type(served.runner).infer

    async def fail(self: Any, given: Sequence[TextInput], options: Any) -> Any:
        if any(wrong(text.text) for text in given):
            raise ValueError
        return await infer(self, given, options)

    monkeypatch.setattr(type(served.runner), "infer", fail)
    inputs = [TextInput(f"text {number}") for number in range(texts)]
    if error is not None:
        with pytest.raises(RunnerError, match=error):
            answer(served, inputs)
        return
    [found] = [row["error"] for row in answer(served, inputs) if "error" in row]
    assert found.startswith("an unexpected error, which the log has (reference ")


def test_more_tokens_than_a_generator_has(serve: Serve, generator_folder: GeneratorFolder) -> None:
    served = serve(model_dir=generator_folder("llama"), backend="huggingface")
    with pytest.raises(InputError, match=r"100000 of max_tokens leave no room for a text: the model takes \d+ tokens"):
        answer(served, [TextInput("a")], {"max_tokens": 100_000})


def test_a_generator(serve: Serve, generator_folder: GeneratorFolder) -> None:
    served = serve(model_dir=generator_folder("llama"), backend="huggingface")
    texts = ["the film", "a play", "", "it"] * 5
    greedy = {"max_tokens": 4, "temperature": 0}
    rows = answer(served, [*map(TextInput, texts), TextInput("a", "b")], greedy)
    expected = predict(served.client, ["the film", "a play", "it"], **greedy)
    assert [row["prediction"] for row in rows[:2]] == expected[:2]
    assert rows[19]["prediction"] == expected[2]
    assert rows[20]["error"] == "the text is a pair, and text_generation takes single texts"
