"""What single tokens are, for the kinds of tokenizers that there are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from runners.generator.vocabulary import Vocabulary
from tests.families import albert_unigram, deberta_unigram, modernbert_bpe, roberta_bpe, wordpiece
from tests.llama_tokenizer import byte_fallback_unigram

KINDS = (roberta_bpe, wordpiece, albert_unigram, deberta_unigram, byte_fallback_unigram)


@pytest.mark.parametrize("make", KINDS)
def test_texts_keep_their_spaces_and_bytes_add_up(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    vocabulary = Vocabulary(make())
    ids = vocabulary.tokenizer.encode("return the value of caf\u00e9 \U0001f680 files", add_special_tokens=False)
    texts = [vocabulary.text(token) for token in ids]
    assert " the" in texts
    assert " of" in texts
    assert b"".join(map(vocabulary.data, ids)).decode().lstrip() == vocabulary.decode(ids).lstrip()


@pytest.mark.parametrize("make", [roberta_bpe, byte_fallback_unigram])
def test_parts_of_characters_have_their_own_bytes(make: Callable[[], PreTrainedTokenizerBase]) -> None:
    vocabulary = Vocabulary(make())
    ids = vocabulary.tokenizer.encode("\U0001f680", add_special_tokens=False)[-4:]
    assert [vocabulary.data(token) for token in ids] == [b"\xf0", b"\x9f", b"\x9a", b"\x80"]
    assert {vocabulary.text(token) for token in ids} == {"\ufffd"}


def test_special_and_missing_tokens() -> None:
    vocabulary = Vocabulary(modernbert_bpe(), 4000)
    cls = vocabulary.tokenizer.cls_token_id
    assert cls in vocabulary.special
    assert vocabulary.text(cls) == "[CLS]"
    assert vocabulary.data(cls) == b"[CLS]"
    assert vocabulary.size == 4000
    assert (vocabulary.string(3999), vocabulary.text(3999), vocabulary.data(3999)) == (None, "", b"")
