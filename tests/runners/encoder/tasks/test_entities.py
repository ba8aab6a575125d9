"""Tokens and entities against `transformers.TokenClassificationPipeline`, through the whole application."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForTokenClassification, AutoTokenizer, TokenClassificationPipeline

from benchmarks.texts import docstrings
from runners.core.answer_options import AggregationStrategy
from runners.encoder.sequences import TokenSpans
from runners.encoder.tasks.entities import EntityFinder
from tests.conftest import ModelFolder, Serve
from tests.families import FAMILIES, name_classes
from tests.v1 import predict

STRATEGIES = ("none", "simple", "first", "average", "max")
NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
# Names that look like others, and ones without a schema.
ODD_NAMES = ("B-", "I-B-PER", "PER", "multi-part-name", "B-PER")
TEXTS = [
    "My name is Sarah Jessica Parker and I live in New York",
    "Zoë's café — naïve résumé, cafe\u0301 ÀB\u0327",
    "👩\u200d👩\u200d👧 met 😀 in Zürich 🇩🇪!",
    "  two  spaces,\ttab\nline   ",
    "東京都 and مرحبا and Привет İstanbul ﬁne",
    "",
    " ",
    "\u0301",
    *docstrings()[:40:10],
    "unbelievable tokenization " * 900,
]  # fmt: skip
_PIECES = st.sampled_from(
    ["Sarah", "lives", "in", "New York", "U.S.", "don't", "é", "e\u0301", "\u0327", "😀", "👩\u200d👧", "🇩🇪", "東京", "ß", "İ",
     "ﬁ", "…", "\u00a0", "\u200b", "\t", "\n", "  ", "#", "##s", "[MASK]", "[UNK]", "</s>", "▁", "Ġ", "-", "B-PER"]
)  # fmt: skip
_ANY = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_RANDOM_TEXTS = st.lists(st.lists(_PIECES | _ANY, max_size=12).flatmap(
    lambda pieces: st.sampled_from(["", " "]).map(lambda space: space.join(pieces))
), min_size=1, max_size=4)  # fmt: skip

Compare = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def compare(model_folder: ModelFolder, serve: Serve) -> Compare:
    """`compare(family, texts, strategy)`: all texts in one request, against the pipeline's answer to each."""
    loaded: dict[Any, Any] = {}

    def compare(
        family: str, texts: list[str], strategy: str, names: tuple[str, ...] = NAMES, ignored: Any = None
    ) -> list[Any]:
        if (family, names) not in loaded:
            folder = model_folder(family, "token_classification", **name_classes(names))
            pipeline = TokenClassificationPipeline(  # type: ignore[no-untyped-call]
                model=AutoModelForTokenClassification.from_pretrained(folder).eval(),
                tokenizer=AutoTokenizer.from_pretrained(folder, model_max_length=512),
            )
            loaded[family, names] = serve(model_dir=folder).client, pipeline
        client, pipeline = loaded[family, names]
        given = {} if ignored is None else {"ignore_labels": ignored}
        found = predict(client, texts, aggregation_strategy=strategy, **given)
        for text, records in zip(texts, found, strict=True):
            expected = pipeline(text, aggregation_strategy=strategy, ignore_labels=ignored)
            name = "entity" if strategy == "none" else "entity_group"
            assert [(each["label"], each["start"], each["end"]) for each in records] == [
                (each[name], each["start"], each["end"]) for each in expected
            ]
            assert [each["text"] for each in records] == [text[each["start"] : each["end"]] for each in expected]
            np.testing.assert_allclose(
                [each["score"] for each in records], [each["score"] for each in expected], atol=1e-4
            )
        return found

    return compare


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_equals_the_pipeline(family: str, strategy: str, compare: Compare) -> None:
    compare(family, TEXTS, strategy)
    compare(family, TEXTS[:3], strategy, ignored=[])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=_RANDOM_TEXTS, strategy=st.sampled_from(STRATEGIES))
@example(texts=["a\u0301\u0301 b"], strategy="max")
def test_equals_the_pipeline_on_random_texts(family: str, texts: list[str], strategy: str, compare: Compare) -> None:
    compare(family, texts, strategy, ignored=[])


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ignored", [None, ["PER"], ["B-PER", "multi-part-name"], ["name", "nothing"]])
def test_names_of_any_kind(strategy: str, ignored: list[str] | None, compare: Compare) -> None:
    """Prefixes are cut as the pipeline cuts them, and what is ignored is what a record would be called."""
    compare("bert", TEXTS, strategy, names=ODD_NAMES, ignored=ignored)


def test_labels_are_tokens(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "token_classification", **name_classes(NAMES))).client
    wanted = predict(client, TEXTS, aggregation_strategy="none")
    assert predict(client, TEXTS, labels=True) == wanted
    assert predict(client, TEXTS, ignore_labels=["O"]) == wanted
    [[classes], *_] = predict(client, TEXTS)
    everything = predict(client, TEXTS, ignore_labels=[])[0]
    assert [each["label"] for each in everything] == [NAMES[index] for index in classes[1:-1]]


def test_the_operator_may_aggregate(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", "token_classification", **name_classes(NAMES))
    client, own = (
        serve(model_dir=folder).client,
        serve(model_dir=folder, aggregation_strategy="max", ignore_labels="O,PER").client,
    )
    assert predict(own, TEXTS) == predict(client, TEXTS, aggregation_strategy="max", ignore_labels=["O", "PER"])
    assert predict(own, TEXTS, ignore_labels="") == predict(client, TEXTS, aggregation_strategy="max", ignore_labels=[])
    assert predict(own, TEXTS, aggregation_strategy=None, ignore_labels=None) == predict(client, TEXTS)


WORDS = [
    ["My", "name", "is", "Sarah", "O'Connor-Parker", "of", "U.S.", "unbelievable", "tokenization", "."],
    ["", "two words", "\u0301", "😀", "東京都", " lead", "\u200b"],
    [],
    ["tokenization"] * 700,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_words(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    """Tokenized as `transformers` does; a word is what the client says, and has the class of its first token."""
    folder = model_folder(family, "token_classification", **name_classes(NAMES))
    client = serve(model_dir=folder).client
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=512)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    instances = [TEXTS[0], *({"words": words} for words in WORDS)]
    [whole, *found] = predict(client, instances)
    assert [whole] == predict(client, TEXTS[:1]), "a text is a text beside words"
    grouped = predict(client, instances, aggregation_strategy="first", ignore_labels=[])[1:]
    for words, records, entities in zip(WORDS, found, grouped, strict=True):
        encoding = tokenizer(words, is_split_into_words=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            scores = torch.softmax(model(**encoding).logits[0], -1)
        best = scores.argmax(-1).tolist()
        first = {word: index for index, word in reversed([*enumerate(encoding.word_ids())]) if word is not None}
        assert [(each["start"], each["end"], each["text"], each["label"]) for each in records] == [
            (word, word + 1, words[word], NAMES[best[index]]) for word, index in sorted(first.items())
        ]
        assert [each["score"] for each in records] == pytest.approx(
            [float(scores[index].max()) for _, index in sorted(first.items())], abs=1e-4
        )
        # Entities are runs of those words.
        assert [each["text"] for each in entities] == [
            " ".join(words[each["start"] : each["end"]]) for each in entities
        ]
        starts = [
            position for position, each in enumerate(records)
            if not position or each["label"][:2] == "B-" or each["label"][-3:] != records[position - 1]["label"][-3:]
        ]  # fmt: skip
        assert [(each["start"], each["label"]) for each in entities] == [
            (records[start]["start"], records[start]["label"][-3:]) for start in starts
        ]


def test_no_tokens_have_no_entities() -> None:
    none = np.zeros(0, dtype=bool)
    source = TokenSpans("", np.zeros((0, 2), dtype=np.int64), none, none)
    for strategy in AggregationStrategy:
        table = EntityFinder(NAMES).find(np.zeros((0, 5), dtype=np.float32), source, strategy, ())
        assert {name: (column.dtype.name, column.shape) for name, column in table.columns.items()} == {
            "label": ("object", (0,)), "score": ("float32", (0,)), "text": ("object", (0,)), "start": ("int64", (0,)),
            "end": ("int64", (0,)),
        }  # fmt: skip
