"""Tokens to text as they come: it adds up to what the tokenizer says of all, and stop strings never show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from runners.generator.text_stream import TextStream
from runners.generator.vocabulary import Vocabulary
from tests.families import albert_unigram, roberta_bpe

TEXTS = (
    "return the value of the file, unless it's closed.",
    "two  spaces, a\nline and a\ttab",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600\U0001f469\u200d\U0001f680 done",
    " ",
    "",
)
TOKENIZERS = (roberta_bpe, albert_unigram)
VOCABULARY = Vocabulary(roberta_bpe())


def stream(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], context: Sequence[int] = (), stop: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """The pieces of text, one a token and one at the end, and whether a stop string ended it."""
    text = TextStream(Vocabulary(tokenizer), context, stop)
    pieces = []
    for token in ids:
        piece, found = text.push(token)
        pieces.append(piece)
        if found is not None:
            return pieces, True
    return [*pieces, text.finish()], False


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("make", TOKENIZERS)
def test_the_pieces_are_the_whole(make: Callable[[], PreTrainedTokenizerBase], text: str) -> None:
    tokenizer = make()
    # With the special tokens, which have no text.
    ids = tokenizer(text).input_ids
    pieces, _ = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_characters_come_whole() -> None:
    tokenizer = roberta_bpe()
    ids = tokenizer("a\U0001f600\u65e5b", add_special_tokens=False).input_ids
    assert len(ids) > 6, "the characters must be of several tokens"
    pieces, _ = stream(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["a", "\U0001f600", "\u65e5", "b"]
    # One that stays incomplete is shown as the tokenizer shows it, at the end.
    pieces, _ = stream(tokenizer, ids[:3])
    assert pieces[:-1] == ["a", "", ""]
    assert pieces[-1] == tokenizer.decode(ids[:3])[1:]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_continuation_keeps_its_space(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    tokenizer = make()
    text = "return the name of the file"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    for split in range(1, len(ids)):
        pieces, _ = stream(tokenizer, ids[split:], context=ids[:split])
        assert f"{tokenizer.decode(ids[:split])}{''.join(pieces)}" == text


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ((), "return the name of the file"),
        (("nothing",), "return the name of the file"),
        (("name",), "return the "),
        # It spans tokens.
        (("e name o",), "return th"),
        (("me of x", "the file"), "return the name of "),
        # The first in the text, not in the list.
        (("file", "name"), "return the "),
        # A beginning that was held back and is no stop string is given out at the end.
        (("file!",), "return the name of the file"),
        (("return",), ""),
    ],
)
@pytest.mark.parametrize("make", TOKENIZERS)
def test_stop_strings_end_the_text(
    make: Callable[[], PreTrainedTokenizerBase], stop: tuple[str, ...], expected: str
) -> None:
    tokenizer = make()
    ids = tokenizer("return the name of the file", add_special_tokens=False).input_ids
    pieces, stopped = stream(tokenizer, ids, stop=stop)
    assert "".join(pieces) == expected
    assert stopped is (expected != "return the name of the file")


def test_only_what_may_be_a_stop_string_is_held_back() -> None:
    tokenizer = roberta_bpe()
    ids = [token for character in "ab\n\nc" for token in tokenizer(character, add_special_tokens=False).input_ids]
    assert stream(tokenizer, ids, stop=("\n\nHuman",))[0] == ["a", "b", "", "", "\n\nc", ""]


@given(
    text=st.text("ab", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=3),
    include=st.booleans(),
    min_tokens=st.integers(0, 20),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings_are_those_of_a_search_in_the_whole_text(
    text: str, stop: list[str], include: bool, min_tokens: int
) -> None:
    ids: Any = VOCABULARY.tokenizer.convert_tokens_to_ids(list(text))
    output = TextStream(VOCABULARY, (), stop, include)
    given_out, found = "", None
    for number, token in enumerate(ids, 1):
        piece, found = output.push(token, may_stop=number > min_tokens)
        given_out += piece
        if found is not None:
            break
        rest = text[:number]
        # All that cannot be the beginning of a stop string is given out, and nothing else.
        held = max(size for string in stop for size in range(len(string)) if rest.endswith(string[:size]))
        assert given_out == (rest if include else rest[: number - held])
    ends = [
        (end, string) for string in stop for end in range(min_tokens + 1, len(text) + 1) if text[:end].endswith(string)
    ]
    if found is None:
        assert not ends
        assert given_out + output.finish() == text
    else:
        end = min(ends)[0]
        assert (end, found) in ends
        assert given_out == text[: end if include else end - len(found)]
