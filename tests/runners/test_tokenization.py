from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from benchmarks.texts import docstrings
from runners.encoder.tokenization import TextTokenizer
from runners.inference import TextInput
from tests.families import FAMILIES


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
    readings = TextTokenizer(reference, max_length, True).tokenize(pairs, offsets=False)
    found = [reading.text for reading in readings]
    for one, wanted in zip(found, expected, strict=True):
        assert one.input_ids.tolist() == wanted["input_ids"]
        assert one.token_type_ids.tolist() == wanted["token_type_ids"]


@pytest.mark.parametrize(
    ("text", "truncated"),
    [
        ("word " * 1_000_000, True),
        (" " * 1_000_000 + "word", False),
        ("x" * 1_000_000, False),
        ("word" + " " * 20_000 + "word " * 600, True),
        ("中" * 20_000, True),
        ("short", False),
    ],
)
def test_only_the_beginning_of_a_very_long_text_is_read(text: str, truncated: bool) -> None:
    """The shortcut must not change a token, whatever the text is made of."""
    reference = AutoTokenizer.from_pretrained(FAMILIES["bert"].tokenizer().name_or_path)
    expected = reference(text, truncation=True, max_length=512)["input_ids"]
    [reading] = TextTokenizer(reference, 512, True).tokenize([TextInput(text)], offsets=False)
    found = reading.text
    assert (found.input_ids.tolist(), found.truncated) == (expected, truncated)


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
        (" " * 30_000 + "word " * 700, " " * 30_000 + "other " * 900),
    ],
)
def test_long_pairs(family: str, max_length: int, text: str, pair: str) -> None:
    """What is left aside of them must not change a token either."""
    reference = FAMILIES[family].tokenizer()
    wanted = reference(text, pair, truncation=True, max_length=max_length, return_token_type_ids=True)
    [reading] = TextTokenizer(reference, max_length, True).tokenize([TextInput(text, pair)], offsets=False)
    assert reading.text.input_ids.tolist() == wanted["input_ids"]
    assert reading.text.token_type_ids.tolist() == wanted["token_type_ids"]


def test_a_pair_of_very_long_texts_takes_no_more_than_its_parts() -> None:
    """Every part of the one beside every part of the other would be 40 GB."""
    reference = FAMILIES["bert"].tokenizer()
    given = TextInput("q " * 500_000, "word " * 500_000)
    [reading] = TextTokenizer(reference, 512, True).tokenize([given], offsets=False)
    assert (len(reading.text.input_ids), reading.text.truncated) == (512, True)
