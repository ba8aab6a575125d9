"""Question answering: spans against every span there is, by the stock model; all wires; what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.tensors import BYTES
from tests.families import FAMILIES
from tests.protocol.answers import HYPOTHESIS, RANDOM_TEXT, TOLERANCE, ask
from tests.protocol.conftest import Run
from tests.protocol.spans import find_spans, stock
from tests.served import Served
from tests.v1 import predict
from tests.wire import WIRES

QUESTION = "Where does Sarah live?"
CONTEXT = "Sarah O'Connor flew to Rome, but she lives in São Paulo 😀."
LONG = f"{'It rains. ' * 150}{CONTEXT}{' Nobody knows.' * 150}"


def check(
    served: Served, question: str, context: str, top_k: int, most: int = 15, impossible: bool = False,
    stride: int = 128,
) -> None:  # fmt: skip
    options = {"top_k": top_k, "max_answer_len": most, "handle_impossible_answer": impossible}
    [found] = predict(served.client, [{"question": question, "context": context}], **options)
    expected = find_spans(served.folder, question, context, most, impossible, stride)
    descending = sorted(expected.values(), reverse=True)[:top_k]
    assert [record["score"] for record in found] == pytest.approx(descending[: len(found)], abs=TOLERANCE)
    # A span whose score rounds to nothing is none.
    assert len(found) == len(descending) or descending[len(found)] < TOLERANCE
    for record in found:
        span = (record["start"], record["end"])
        assert record["answer"] == context[slice(*span)]
        assert record["score"] == pytest.approx(expected[span], abs=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@HYPOTHESIS
@given(
    question=RANDOM_TEXT,
    context=RANDOM_TEXT.map(lambda text: f"São {text}"),
    top_k=st.integers(1, 9),
    most=st.integers(1, 20),
    impossible=st.booleans(),
)
def test_answers_are_the_best_spans(
    family: str, question: str, context: str, top_k: int, most: int, impossible: bool, run: Run
) -> None:
    served = run("question_answering", family)
    check(served, question, context, top_k, most, impossible)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_long_context_is_read_to_its_end(family: str, run: Run) -> None:
    check(run("question_answering", family), QUESTION, LONG, 5, 4)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize(
    ("words", "context"),
    [(130, LONG), (200, LONG), (250, "It rains. " * 40)],
    ids=["just too long for windows that share 128 tokens", "long", "longer than its context"],
)
def test_beside_a_long_question_windows_share_fewer_tokens(family: str, words: int, context: str, run: Run) -> None:
    """Never the question is read in windows, however long it is; half of what a window has room for is shared."""
    served = run("question_answering", family)
    question = "the " * words
    tokenizer, _ = stock(served.folder)
    special = tokenizer.num_special_tokens_to_add(pair=True)
    room = 384 - special - len(tokenizer(question, add_special_tokens=False)["input_ids"])
    check(served, question, context, 5, 4, stride=min(128, room // 2))


def test_the_best_answer_is_a_record_and_several_are_a_list(run: Run) -> None:
    served = run("question_answering")
    instances = [[QUESTION, CONTEXT], {"text": QUESTION, "text_pair": LONG}]
    best, lists = predict(served.client, instances), predict(served.client, instances, top_k=3)
    assert [records[0] for records in lists] == best
    assert [list(record) for record in best] == [["answer", "score", "start", "end"]] * 2
    assert lists == predict(
        served.client, [{"question": QUESTION, "context": text} for text in (CONTEXT, LONG)], top_k=3
    )


@pytest.mark.parametrize(("options", "shape"), [({}, [2]), ({"top_k": 3}, [2, 3])])
def test_answers_are_typed_tensors(options: dict[str, Any], shape: list[int], run: Run) -> None:
    served = run("question_answering")
    tensor = {"name": "x", "shape": [2, 2], "datatype": BYTES, "data": [QUESTION, CONTEXT, QUESTION, LONG]}
    outcomes = [
        wire(served.client, served.channel, "model", {"inputs": [tensor], "parameters": options}) for wire in WIRES
    ]
    assert outcomes == [outcomes[0]] * len(WIRES)
    names = [("answer", BYTES), ("score", "FP32"), ("start", "INT64"), ("end", "INT64")]
    assert [output[:3] for output in outcomes[0].outputs] == [(*name, shape) for name in names]
    answers, _, starts, ends = (output[3] for output in outcomes[0].outputs)
    contexts = np.repeat([CONTEXT, LONG], len(answers) // 2)
    assert [text[start:end] for text, start, end in zip(contexts, starts, ends, strict=True)] == answers
    metadata = served.client.get("/v2/models/model").json()
    assert metadata["inputs"] == [{"name": "input-0", "datatype": BYTES, "shape": [-1, 2]}]
    # The answer alone may be asked for by its name.
    alone = {"inputs": [tensor], "parameters": options, "outputs": [{"name": "answer"}]}
    assert WIRES[0](served.client, served.channel, "model", alone).outputs == outcomes[0].outputs[:1]


@pytest.mark.parametrize(
    ("instance", "parameters", "error"),
    [
        ("text", {}, "text 0 is a single one, and question_answering takes a question and a context"),
        ({"question": "x"}, {}, "instances[0] must have either text, which text_pair may follow, or words, or question and context"),
        ({"question": "x", "context": "y", "text": "z"}, {}, "instances[0] must have either text, "),
        ([QUESTION, ""], {}, "text 0 cannot be served: its context is empty"),
        ([QUESTION, " \n\t"], {}, "text 0 cannot be served: its context is empty"),
        (["word " * 300, LONG], {}, "text 0 cannot be served: its question has 300 tokens; beside a context that does not fit into the model's 384 tokens it may have 285"),
        (["word " * 300, LONG], {"stride": 1}, "text 0 cannot be served: its question has 300 tokens; "),
        (["word " * 130, LONG], {"stride": 128}, "text 0 cannot be served: stride 128 needs windows of at least 256 tokens, but only 251 of 384 remain beside the other text"),
        ([QUESTION, LONG], {"stride": 200}, "text 0 cannot be served: stride 200 needs windows of at least 400 tokens, but only "),
        ([QUESTION, "a " * 2**18], {}, "text 0 cannot be served: 524310 characters of a text that is not simply truncated are more than the 524288 that --max_whole_text_characters allows"),
        ([QUESTION, CONTEXT], {"max_answer_len": 10**9}, "1000000000 tokens (max_answer_len) are more than the 1000 that --max_answer_tokens allows"),
        ([QUESTION, CONTEXT], {"max_answer_len": 0}, "the parameter max_answer_len is wrong: Input should be greater than or equal to 1"),
        ([QUESTION, CONTEXT], {"truncation": True}, "the parameter truncation does not apply to question_answering, whose options are: handle_impossible_answer, max_answer_len, stride, top_k"),
    ],
)  # fmt: skip
def test_what_is_refused(instance: Any, parameters: dict[str, Any], error: str, run: Run) -> None:
    served = run("question_answering")
    response = served.client.post("/v1/models/model:predict", json={"instances": [instance], "parameters": parameters})
    assert response.status_code == (413 if "are more than the" in error else 400)
    assert response.json()["error"].startswith(error)


def test_scores_of_classes_have_no_meaning(run: Run) -> None:
    """As for a vector: `return_probabilities`, which may be the operator's, changes nothing."""
    served = run("question_answering")
    expected = predict(served.client, [[QUESTION, CONTEXT]])
    assert predict(served.client, [[QUESTION, CONTEXT]], return_probabilities=True) == expected
    assert predict(run("question_answering", return_probabilities=True).client, [[QUESTION, CONTEXT]]) == expected
    tokens = {"name": "input_ids", "shape": [1, 3], "datatype": "INT64", "data": [101, 7592, 102]}
    outcome = WIRES[0](served.client, served.channel, "model", {"inputs": [tokens]})
    assert outcome.error == "text 0 cannot be served: question_answering needs a text, but the request has token ids"
    assert ask(served, ["x"], {}).error == (
        "text 0 is a single one, and question_answering takes a question and a context"
    )
