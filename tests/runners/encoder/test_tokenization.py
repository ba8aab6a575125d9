from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Encoding
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from benchmarks.texts import docstrings
from runners.core.answer_options import OverflowOptions, TruncationSide
from runners.core.errors import InputError, LimitExceededError
from runners.core.generation import PromptOptions
from runners.core.predictions import TextInput
from runners.encoder.sequences import TokenizedText
from runners.encoder.tokenization import TextTokenizer
from tests.families import FAMILIES
from tests.llama_tokenizer import byte_fallback_unigram
from tests.servers import ROOT
from tests.tokenizer_kinds import TOKENIZER_KINDS

LENGTH = 24
SIDES = ("right", "left")


@cache
def both(kind: str, side: str, own_side: str | None = None) -> tuple[PreTrainedTokenizerBase, TextTokenizer]:
    """The tokenizer of `transformers` and ours, which changes the one that it is given.

    Args:
        own_side: the side of our tokenizer's files, if it is another one.
    """
    make = byte_fallback_unigram if kind == "Unigram of bytes" else TOKENIZER_KINDS[kind]
    reference = copy.deepcopy(make())
    reference.truncation_side = side
    reference.model_max_length = LENGTH
    ours = copy.deepcopy(reference)
    ours.truncation_side = own_side or side
    return reference, TextTokenizer(ours, LENGTH, add_special_tokens=True)


def tokens(reference: PreTrainedTokenizerBase, *texts: str, **options: Any) -> dict[str, Any]:
    """What `transformers` makes of a text or a pair; as a batch, since it takes one pair without a second for a text."""
    batch = reference(
        *([text] for text in texts), return_token_type_ids=True, return_offsets_mapping=True, **options
    )  # fmt: skip
    return {name: values[0] for name, values in batch.items()}


def check(found: TokenizedText, reference: PreTrainedTokenizerBase, *texts: str, **options: Any) -> None:
    """A text or a pair is what `transformers` makes of it, with its offsets if ours are there."""
    wanted = tokens(reference, *texts, **options)
    assert found.input_ids.tolist() == wanted["input_ids"]
    assert found.token_type_ids.tolist() == wanted["token_type_ids"]
    if found.offsets is not None:
        assert found.offsets.tolist() == [list(span) for span in wanted["offset_mapping"]]
    assert found.truncated == (len(tokens(reference, *texts)["input_ids"]) > LENGTH)


def repeated(pieces: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Short texts, long ones, and those that are so long that only their beginning is tokenized."""
    return st.tuples(pieces, st.sampled_from([1, 1, 3, 30])).map(lambda given: given[0] * given[1])


PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", " \n ", "\u00a0", "\u3000", "é", "e\u0301", "中文", "😀", "👩‍👩‍👧", "word", "unbelievable", " word", "Word ", "don't", "...", "İ", "x" * 20]
)  # fmt: skip
TEXTS = repeated(st.lists(PIECES, max_size=8).map("".join)) | repeated(st.text(max_size=12))
EXAMPLES = settings(max_examples=40, deadline=None)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@EXAMPLES
@given(text=TEXTS, offsets=st.booleans())
def test_any_text(kind: str, side: str, text: str, offsets: bool) -> None:
    reference, tokenizer = both(kind, side)
    [encoded] = tokenizer.tokenize([TextInput(text)], offsets)
    check(encoded.text, reference, text, truncation=True)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@EXAMPLES
@given(text=TEXTS, pair=TEXTS, length=st.integers(5, LENGTH), special=st.sampled_from([None, False]))
def test_a_length_that_a_request_names(
    kind: str, side: str, text: str, pair: str, length: int, special: bool | None
) -> None:
    """And texts without special tokens; other requests get the model's length, and its special tokens."""
    reference, tokenizer = both(kind, side)
    form = PromptOptions(add_special_tokens=special, truncate_to=length)
    single, both_texts = tokenizer.tokenize([TextInput(text), TextInput(text, pair)], True, form=form)
    options = {"truncation": True, "max_length": length, "add_special_tokens": special is None}
    assert single.text.input_ids.tolist() == tokens(reference, text, **options)["input_ids"]
    assert both_texts.text.input_ids.tolist() == tokens(reference, text, pair, **options)["input_ids"]
    [encoded] = tokenizer.tokenize([TextInput(text)], True)
    check(encoded.text, reference, text, truncation=True)


@pytest.mark.parametrize(
    ("given_text", "special", "refused"),
    [(TextInput("a"), None, 2), (TextInput("a", "b"), None, 3), (TextInput("a", "b"), False, 0)],
)
def test_the_shortest_length(given_text: TextInput, special: bool | None, refused: int) -> None:
    _, tokenizer = both("WordPiece", "right")
    if refused:
        with pytest.raises(InputError, match=f"is {refused}; special tokens alone take {refused}") as error:
            tokenizer.tokenize([given_text], False, form=PromptOptions(special, refused))
        assert error.value.param == "truncate_prompt_tokens"
    [encoded] = tokenizer.tokenize([given_text], False, form=PromptOptions(special, refused + 1))
    assert len(encoded.text.input_ids) == refused + 1


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@EXAMPLES
@given(text=TEXTS, pair=TEXTS, offsets=st.booleans(), own=st.sampled_from(SIDES), counted=st.booleans())
def test_a_side_that_a_request_names(
    kind: str, side: str, text: str, pair: str, offsets: bool, own: str, counted: bool
) -> None:
    """Whatever the side of the tokenizer's files is, which other requests get."""
    reference, tokenizer = both(kind, side, own)
    overflow = OverflowOptions(truncation_side=TruncationSide(side), return_truncated_tokens=counted)
    single, both_texts = tokenizer.tokenize([TextInput(text), TextInput(text, pair)], offsets, overflow=overflow)
    check(single.text, reference, text, truncation=True)
    check(both_texts.text, reference, text, pair, truncation=True)
    whole = len(tokens(reference, text, pair)["input_ids"])
    assert both_texts.truncated_tokens == (max(0, whole - LENGTH) if counted else 0)
    [beside] = tokenizer.cross([text], ["This is."], overflow, 0)
    check(beside.text, reference, text, "This is.", truncation="only_first")
    [encoded] = tokenizer.tokenize([TextInput(text)], offsets)
    check(encoded.text, both(kind, own)[0], text, truncation=True)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@EXAMPLES
@given(text=TEXTS, pair=TEXTS, offsets=st.booleans())
@example(text=" word" * 60, pair=" other" * 60, offsets=False)
def test_any_pair(kind: str, side: str, text: str, pair: str, offsets: bool) -> None:
    reference, tokenizer = both(kind, side)
    [encoded] = tokenizer.tokenize([TextInput(text, pair)], offsets)
    check(encoded.text, reference, text, pair, truncation=True)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", TOKENIZER_KINDS)
@EXAMPLES
@given(
    text=TEXTS,
    labels=st.lists(st.text(max_size=4) | st.sampled_from(["This is.", " é 中", "the " * 9]), min_size=1, max_size=3),
    counted=st.booleans(),
)
def test_any_text_beside_labels(kind: str, side: str, text: str, labels: list[str], counted: bool) -> None:
    """As zero-shot classification has them: the label is never what is truncated."""
    reference, tokenizer = both(kind, side)
    labels = [
        label for label in labels if len(tokens(reference, label, add_special_tokens=False)["input_ids"]) <= LENGTH // 2
    ]
    if not labels:
        return
    [encoded] = tokenizer.cross([text], labels, OverflowOptions(return_truncated_tokens=counted), 0)
    for label, sequence in zip(labels, encoded.sequences, strict=True):
        check(sequence, reference, text, label, truncation="only_first")
    longest = max(len(tokens(reference, text, label)["input_ids"]) for label in labels)
    assert encoded.truncated_tokens == (max(0, longest - LENGTH) if counted else 0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [8, 64])
def test_equals_transformers(family: str, max_length: int) -> None:
    reference = FAMILIES[family].tokenizer()
    texts = [*docstrings()[:200:10], " ".join(docstrings()[:200]), "", "é 中文 😀"]
    pairs = [TextInput(text) for text in texts] + [TextInput(text, texts[0]) for text in texts]
    expected = [
        reference(*((item.text,) if item.pair is None else (item.text, item.pair)), truncation=True,
                  max_length=max_length, return_token_type_ids=True)
        for item in pairs
    ]  # fmt: skip
    encoded_texts = TextTokenizer(reference, max_length, True).tokenize(pairs, offsets=False)
    found = [encoded.text for encoded in encoded_texts]
    for one, wanted in zip(found, expected, strict=True):
        assert one.input_ids.tolist() == wanted["input_ids"]
        assert one.token_type_ids.tolist() == wanted["token_type_ids"]


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        ("word " * 1_000_000, True),
        (" " * 500_000 + "word", False),
        ("x" * 500_000, False),
        ("中" * 1_000_000, True),
        ("中文。" * 400_000, True),
        ("x" * 500_000 + " word" * 600, True),
        ("word" + " " * 20_000 + "word " * 600, True),
        ("中" * 20_000, True),
        ("short", False),
    ],
)
def test_only_the_beginning_of_a_very_long_text_is_read(text: str, truncated: bool) -> None:
    """The shortcut must not change a token, whatever the text is made of."""
    reference = AutoTokenizer.from_pretrained(FAMILIES["bert"].tokenizer().name_or_path)
    expected = reference(text, truncation=True, max_length=512)["input_ids"]
    [encoded] = TextTokenizer(reference, 512, True).tokenize([TextInput(text)], offsets=False)
    found = encoded.text
    assert (found.input_ids.tolist(), found.truncated) == (expected, truncated)


ONE_WORD = st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=40) | st.sampled_from(
    ["x", "ab", "中", "你好世界", "e\u0301", "0123456789", "a.b,c", "-", "ﷺ", "👩‍👩‍👧", "\n", "x\u3000"]
)


@pytest.mark.parametrize("kind", [*TOKENIZER_KINDS, "Unigram of bytes"])
@EXAMPLES
@example(parts=[("-", 2701)])
@example(parts=[("0123456789", 7), ("-", 701)])
@given(parts=st.lists(st.tuples(ONE_WORD, st.sampled_from([1, 50, 701, 2000])), min_size=1, max_size=3))
def test_a_text_without_spaces_has_the_tokens_of_the_whole(kind: str, parts: list[tuple[str, int]]) -> None:
    """Wherever its beginning is cut, in the middle of a word."""
    reference, tokenizer = both(kind, "right")
    text = "".join(piece * times for piece, times in parts)
    # A run of bytes that are no tokens has the offsets of all of it for each, which only the whole text tells.
    [encoded] = tokenizer.tokenize([TextInput(text)], offsets=kind in TOKENIZER_KINDS)
    check(encoded.text, reference, text, truncation=True)


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZER_KINDS if kind.startswith("Unigram")])
@pytest.mark.parametrize("max_length", [6, 12])
@pytest.mark.parametrize("word", ["xyzw", "unbelievable"])
def test_a_short_limit_does_not_need_the_end_of_a_long_word(kind: str, max_length: int, word: str) -> None:
    reference = TOKENIZER_KINDS[kind]()
    expected = reference(word * 2000, truncation=True, max_length=max_length)["input_ids"]
    [reading] = TextTokenizer(reference, max_length, True).tokenize([TextInput(word * 150_000)], offsets=False)
    assert reading.text.input_ids.tolist() == expected


@pytest.mark.parametrize("kind", [*TOKENIZER_KINDS, "Unigram of bytes"])
@pytest.mark.parametrize("word", ["x" * 100_000, "中文" * 5000, "unbelievable" * 3000, ""])
def test_words_of_any_length_have_the_tokens_of_the_whole(kind: str, word: str) -> None:
    reference, tokenizer = both(kind, "right")
    words = ("a", word, "b" * 50) * 3 + ("c",) * 3000
    [encoded] = tokenizer.tokenize([TextInput("", words=words)], offsets=False)
    assert encoded.text.input_ids.tolist() == reference([*words], is_split_into_words=True, truncation=True).input_ids


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("own_side", SIDES)
@pytest.mark.parametrize(
    "given",
    [
        TextInput("x" * 600_000),
        TextInput(" " * 600_000),
        TextInput("a question", "x" * 600_000),
        TextInput("", words=("x" * 600_000,)),
    ],
)
def test_a_text_whose_end_decides_its_tokens_is_refused_if_it_is_too_long(
    given: TextInput, own_side: str, side: str
) -> None:
    _, tokenizer = both("WordPiece", side, own_side)
    overflow = OverflowOptions(truncation_side=TruncationSide(side))
    with pytest.raises(LimitExceededError, match=r"^text 7 .*the 524288 that --max_whole_text_characters allows"):
        tokenizer.tokenize([given], offsets=False, overflow=overflow, first_position=7)


def test_a_copy_has_settings_of_its_own() -> None:
    """The tokenizer of another thread is in the middle of a text when this one turns truncation off."""
    for kind in TOKENIZER_KINDS:
        _, tokenizer = both(kind, "right")
        copied = tokenizer.copy()
        copied._encoder._backend.no_truncation()
        texts = [TextInput("a text of [MASK] <mask> words " * 9), TextInput("É 中文")]
        expected = tokenizer.tokenize(texts, offsets=False)
        copied._encoder._truncate()
        for one, other in zip(expected, copied.tokenize(texts, offsets=False), strict=True):
            assert len(one.text.input_ids) <= LENGTH
            assert one.text.input_ids.tolist() == other.text.input_ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_length", [512, 513])
@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("word unbelievable " * 900, "é other " * 1100),
        ("é other " * 1100, "word unbelievable " * 900),
        ("中文字" * 1500, "word " * 2000),
        ("a question", "word " * 9000),
        ("word " * 9000, "é " * 300),
        (" " * 10_000 + "word " * 700, " " * 10_000 + "other " * 900),
    ],
)
def test_long_pairs(family: str, max_length: int, text: str, pair: str) -> None:
    """What is left aside of them must not change a token either."""
    reference = FAMILIES[family].tokenizer()
    wanted = reference(text, pair, truncation=True, max_length=max_length, return_token_type_ids=True)
    [encoded] = TextTokenizer(reference, max_length, True).tokenize([TextInput(text, pair)], offsets=False)
    assert encoded.text.input_ids.tolist() == wanted["input_ids"]
    assert encoded.text.token_type_ids.tolist() == wanted["token_type_ids"]


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("max_length", [15, 16])
@pytest.mark.parametrize(
    "texts",
    [
        ("a " * 320, "station " * 960),
        # Only the ends tell which is the longer one.
        ("a " * 900, "station " * 400 + "a " * 700),
        ("a " * 900, "station " * 400 + "a " * 400),
        ("station " * 400 + "a " * 500, "a " * 900),
        # As many of both.
        ("a " * 900, "station " * 900),
        # The beginning of the first has so few tokens that all of it is tokenized at once.
        (" " * 600 + "a " * 20, "station " * 400),
    ],
)
def test_the_longer_of_two_long_texts_gets_the_odd_token(texts: tuple[str, str], max_length: int, side: str) -> None:
    reference = copy.deepcopy(TOKENIZER_KINDS["WordPiece"]())
    reference.truncation_side = side
    tokenizer = TextTokenizer(copy.deepcopy(reference), max_length, add_special_tokens=True)
    for text, pair in (texts, texts[::-1]):
        wanted = reference(text, pair, truncation=True, max_length=max_length, return_token_type_ids=True)
        [encoded] = tokenizer.tokenize([TextInput(text, pair)], offsets=False)
        assert encoded.text.input_ids.tolist() == wanted["input_ids"]
        assert encoded.text.token_type_ids.tolist() == wanted["token_type_ids"]


def test_of_two_very_long_texts_not_all_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """An estimate decides then, which is right for texts that are alike to their ends."""
    reference = TOKENIZER_KINDS["WordPiece"]()
    tokenizer = TextTokenizer(copy.deepcopy(reference), 16, add_special_tokens=True)
    texts = ("a " * 400_000, "station " * 500_000)
    tokenized_parts: list[str] = []
    encode = tokenizer._encoder.encode_parts

    def record(parts: Sequence[str]) -> list[Encoding]:
        tokenized_parts.extend(parts)
        return encode(parts)

    monkeypatch.setattr(tokenizer._encoder, "encode_parts", record)
    for text, pair in (texts, texts[::-1]):
        [encoded] = tokenizer.tokenize([TextInput(text, pair)], offsets=False)
        kept = [
            encoded.text.input_ids.tolist().count(reference.convert_tokens_to_ids(word)) for word in ("a", "station")
        ]
        assert kept == [6, 7]
    assert max(map(len, tokenized_parts)) <= 2**19


def test_a_label_may_have_half_of_the_model_beside_a_text_of_that_length() -> None:
    """Truncating the longer of the two would cut the label."""
    reference, tokenizer = both("WordPiece", "right")
    text, label = "a " * 12, "b " * 12
    [encoded] = tokenizer.cross([text], [label], OverflowOptions(), 0)
    check(encoded.text, reference, text, label, truncation="only_first")
    assert encoded.text.input_ids.tolist().count(reference.convert_tokens_to_ids("b")) == 12


def test_a_pair_of_very_long_texts_takes_no_more_than_its_parts() -> None:
    """Every part of the one beside every part of the other would be 40 GB."""
    reference = FAMILIES["bert"].tokenizer()
    given = TextInput("q " * 500_000, "word " * 500_000)
    [encoded] = TextTokenizer(reference, 512, True).tokenize([given], offsets=False)
    assert (len(encoded.text.input_ids), encoded.text.truncated) == (512, True)


RELOADS = """
import ctypes, gc, random, threading
from pathlib import Path
from runners.core.predictions import TextInput
from runners.encoder.tokenization import TextTokenizer
from tests.tokenizer_kinds import TOKENIZER_KINDS

random = random.Random(0)

def tokenize_new_words():
    tokenizer = TextTokenizer(TOKENIZER_KINDS["byte-level BPE"](), 512, add_special_tokens=True)
    for _ in range(100):
        texts = [" ".join(random.randbytes(6).hex() for _ in range(50)) for _ in range(8)]
        tokenizer.tokenize([TextInput(text) for text in texts], offsets=False)

def read_anonymous():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))

for number in range(5):
    thread = threading.Thread(target=tokenize_new_words)
    thread.start()
    thread.join()
    if number == 1:
        before = read_anonymous()
print(read_anonymous() - before)
"""


def test_words_of_bpe_are_gone_with_the_thread_that_tokenized_them() -> None:
    """Else each load of a model again would keep 2 MiB in every thread of the library, also after the model is gone."""
    run = subprocess.run([sys.executable, "-c", RELOADS], cwd=ROOT, capture_output=True, check=True, text=True)
    assert int(run.stdout) < 6 * 1024
