"""Rows become texts as V1's instances do."""

from __future__ import annotations

from math import nan
from typing import Any

import pytest

from protocol.bulk.rows import check_columns, claim_columns, list_answer_columns, read_text, to_cell
from runners.core.errors import InputError
from runners.core.predictions import TextInput


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "a"}, TextInput("a")),
        ({"text": ""}, TextInput("")),
        ({"text": "a", "text_pair": "b", "id": 1}, TextInput("a", "b")),
        ({"text": "a", "text_pair": None}, TextInput("a")),
        ({"text": ["a", "b"]}, TextInput("a", "b")),
        ({"text": {"text": "a", "text_pair": "b"}}, TextInput("a", "b")),
        ({"text": {"question": "a", "context": "b"}}, TextInput("a", "b")),
        ({"question": "a", "context": "b"}, TextInput("a", "b")),
        ({"words": ["a", "b"]}, TextInput("a b", words=("a", "b"))),
        ({"text": "a", "question": "b", "context": "c"}, TextInput("a")),
        # A table has all columns in each row.
        ({"text": None, "question": "a", "context": "b"}, TextInput("a", "b")),
        ({"text": "", "question": "a", "context": "b"}, TextInput("a", "b")),
    ],
)
def test_text(record: dict[str, Any], text: TextInput) -> None:
    assert read_text(record, "text") == text


@pytest.mark.parametrize(
    ("record", "error"),
    [
        (
            {"body": "a", "id": 1},
            "there is no column text, and no question and context, or words; the columns are: body, id",
        ),
        ({}, "there is no column text, and no question and context, or words; the columns are: none"),
        ({"text": None}, "text is empty"),
        ({"question": "a", "context": None}, "context is empty"),
        ({"text": None, "question": None, "context": None}, "question, context are empty"),
        (
            {"Text ": "a"},
            "there is no column text, and no question and context, or words; the columns are: Text ; did you mean "
            "--text_column='Text '?",
        ),
        ({"text": 5}, "text must be a text, a list of two texts, or an object"),
        ({"text": ["a"]}, "text has 1 texts; a pair is a list of two"),
        ({"text": ["a", 5]}, "text is not as expected: Expected `str`, got `int` - at `$[1]`"),
        ({"text": {"txt": "a"}}, "text is not as expected: Object contains unknown field `txt`"),
        (
            {"text": {"question": "a"}},
            "text must have either text, which text_pair may follow, or words, or question and context",
        ),
        ({"text": "a", "text_pair": 5}, "text_pair and text must both be texts"),
        ({"text": ["a", "b"], "text_pair": "c"}, "text_pair and text must both be texts"),
        (
            {"question": "a", "context": 5},
            "question and context is not as expected: Expected `str`, got `int` - at `$.context`",
        ),
        ({"words": "a b"}, "words is not as expected: Expected `array`, got `str` - at `$.words`"),
    ],
)
def test_wrong_row(record: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        read_text(record, "text")
    assert str(raised.value) == error


@pytest.mark.parametrize("name", ["prediction", "error", "offset_mapping"])
def test_a_column_that_answers_have(name: str) -> None:
    with pytest.raises(InputError, match=f"the input has a column {name} already"):
        check_columns(["text", name], "text", list_answer_columns(["offset_mapping"]))


@pytest.mark.parametrize("name", ["prediction", "error", "offset_mapping"])
def test_a_column_of_texts_that_answers_have(name: str) -> None:
    with pytest.raises(InputError, match=f"--text_column={name}: the output has a column {name} of its own"):
        claim_columns(name, ["offset_mapping"])


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("a,b", "a,b"), (None, ""), (1, "1"), (0.5, "0.5"), (True, "true"), ([1, None], "[1,null]"), ({"a": "é"}, '{"a":"é"}'),
        (2**64 - 1, str(2**64 - 1)), (b"\xff", "/w=="), (nan, "nan"), ([nan], "[null]"), (iter(["a"]), '["a"]'),
    ],
)  # fmt: skip
def test_cells(value: object, cell: str) -> None:
    assert to_cell(value) == cell
