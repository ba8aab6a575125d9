"""Texts truncated to a number of tokens, against the tokenizers' own truncation."""

from __future__ import annotations

from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from transformers import AutoTokenizer

from protocol.text_truncation import truncate_texts
from tests.conftest import ModelFolder, Serve

TEXTS = [
    "", "a", "Hello world", "unaffable tokenizations of 1234567 words", "  spaces \n and\tlines  ", "a long text " * 40,
    "日本語のテキスト", "naïve Ünïcode 👩‍🚀🚀", "[MASK] and <mask> are special", "x" * 200,
]  # fmt: skip


def run(function: Any, *arguments: Any) -> Any:
    with start_blocking_portal() as portal:
        return portal.call(function, *arguments)


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize("most", [1, 3, 10, 29])
def test_the_tokens_are_those_that_the_tokenizer_keeps(
    family: str, most: int, model_folder: ModelFolder, serve: Serve
) -> None:
    folder = model_folder(family, "text_ranking")
    found = run(truncate_texts, serve(model_dir=folder).runner, TEXTS, most)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    whole, kept = (
        tokenizer(TEXTS, add_special_tokens=False, **options)["input_ids"]
        for options in ({}, {"truncation": True, "max_length": most})
    )
    for text, cut, all_ids, kept_ids in zip(TEXTS, found, whole, kept, strict=True):
        assert text.startswith(cut)
        assert (cut == text) is (len(all_ids) <= most)
        ids = tokenizer(cut, add_special_tokens=False)["input_ids"]
        # A character of which only some tokens would be kept is removed; it has four at most.
        assert ids == kept_ids[: len(ids)]
        assert len(kept_ids) - len(ids) <= 3


def test_nothing_is_done_beyond_the_models_length(model_folder: ModelFolder, serve: Serve) -> None:
    runner = serve(model_dir=model_folder("bert", "text_ranking")).runner
    texts = ["a long text " * 4000]
    assert run(truncate_texts, runner, texts, runner.max_length) == texts
    assert run(truncate_texts, runner, texts, runner.max_length - 1) != texts
