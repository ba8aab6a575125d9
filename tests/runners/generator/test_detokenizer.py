"""Token ids to text as they come, against one decode of all of them, for the kinds of tokenizers that there are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from runners.generator.detokenizer import Detokenizer
from runners.generator.vocabulary import Vocabulary
from tests.families import albert_unigram, modernbert_bpe, roberta_bpe, wordpiece
from tests.llama_tokenizer import byte_fallback_unigram
from tests.tokenizer_kinds import TOKENIZER_KINDS

MakeTokenizer = Callable[[], PreTrainedTokenizerBase]
KINDS: dict[str, MakeTokenizer] = {
    **TOKENIZER_KINDS,
    "byte-level BPE, added tokens": modernbert_bpe,
    "Unigram with byte tokens": byte_fallback_unigram,
}
_RUN = re.compile(r"(?:<0x[0-9A-F]{2}>)+")
_vocabularies: dict[str, Vocabulary] = {}


def vocabulary_of(kind: str) -> Vocabulary:
    if kind not in _vocabularies:
        _vocabularies[kind] = Vocabulary(KINDS[kind]())
    return _vocabularies[kind]


def stream(vocabulary: Vocabulary, ids: Sequence[int], context: Sequence[int] = (), skip: bool = True) -> list[str]:
    """The pieces of text, one a token and one at the end."""
    detokenizer = Detokenizer(vocabulary, context, skip)
    pieces = [detokenizer.push(token) for token in ids]
    pieces.append(detokenizer.finish())
    assert detokenizer.length == len("".join(pieces))
    return pieces


def whole(vocabulary: Vocabulary, ids: Sequence[int], skip: bool) -> str | None:
    """One decode of all tokens; None where a character cannot be given out before it is replaced.

    Of a run of byte tokens that are no UTF-8 `tokenizers` makes nothing but replacement characters, also of characters
    that were complete; as they come, those have been given out.
    """
    kept = [token for token in ids if not (skip and token in vocabulary.special)]
    marked = "".join(
        string if _RUN.fullmatch(string) else "\n" for token in kept if (string := vocabulary.string(token)) is not None
    )
    runs = [bytes.fromhex(run.replace("<0x", "").replace(">", "")) for run in _RUN.findall(marked)]
    if not vocabulary.is_byte_level and any(run.decode(errors="ignore").encode() != run for run in runs):
        return None
    text = vocabulary.tokenizer.decode(list(ids), skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_pieces_are_one_decode_of_all(kind: str, data: st.DataObject) -> None:
    vocabulary = vocabulary_of(kind)
    tokens = st.integers(0, len(vocabulary.tokenizer) + 3)
    special = st.sampled_from(sorted(vocabulary.special) or [0])
    odd = [token for token in range(len(vocabulary.tokenizer)) if "\ufffd" in vocabulary.text(token)]
    parts = st.one_of(tokens, special, st.sampled_from(odd or [0]))
    runs = st.lists(st.tuples(parts, st.integers(1, 12)), max_size=12)
    ids = [token for token, times in data.draw(runs) for _ in range(times)]
    skip = data.draw(st.booleans())
    expected = whole(vocabulary, ids, skip)
    if expected is not None:
        assert "".join(stream(vocabulary, ids, skip=skip)) == expected


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=40), split=st.integers(1, 60))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_continuation_is_what_the_prompt_lacks(kind: str, text: str, split: int) -> None:
    vocabulary = vocabulary_of(kind)
    ids = vocabulary.tokenizer.encode(f"the {text}", add_special_tokens=False)
    before, after = ids[:split], ids[split:]
    # What is incomplete at its end comes with what completes it.
    prompt = "".join(stream(vocabulary, before)[:-1])
    assert prompt + "".join(stream(vocabulary, after, before)) == vocabulary.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram with byte tokens"])
def test_a_prompt_that_ends_inside_a_character_does_not_lose_it(kind: str) -> None:
    vocabulary = vocabulary_of(kind)
    ids = vocabulary.tokenizer.encode("it is \U0001f680 now", add_special_tokens=False)
    rocket = [token for token in ids if "\ufffd" in vocabulary.text(token)]
    assert len(rocket) == 4
    start = ids.index(rocket[0])
    for split in range(start + 1, start + 4):
        assert "".join(stream(vocabulary, ids[split:], ids[:split])) == "\U0001f680 now"
        # The prompt has shown what never becomes one.
        assert "".join(stream(vocabulary, ids[start + 4 :], ids[:split])) == " now"


def test_a_complete_character_stays_where_bytes_after_it_are_none() -> None:
    vocabulary = vocabulary_of("Unigram with byte tokens")
    ids = vocabulary.tokenizer.get_vocab()
    euro = [ids["<0xE2>"], ids["<0x82>"], ids["<0xAC>"]]
    bad = [ids["<0xFF>"], ids["<0xE2>"], ids["<0x82>"]]
    word = [ids["\u2581the"]]
    assert stream(vocabulary, [*euro, *bad, *word]) == ["", "", "\u20ac", "\ufffd", "", "", "\ufffd\ufffd the", ""]
    assert stream(vocabulary, [*word, *bad]) == ["the", "\ufffd", "", "", "\ufffd\ufffd"]


@pytest.mark.parametrize("make", [roberta_bpe, albert_unigram, wordpiece, byte_fallback_unigram])
def test_no_token_decodes_more_than_a_window(make: MakeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = Vocabulary(make())
    decoded: list[int] = []
    decode = vocabulary.decode

    def counted_decode(ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        decoded.append(len(ids))
        return decode(ids, skip_special_tokens)

    monkeypatch.setattr(vocabulary, "decode", counted_decode)
    special = next(iter(vocabulary.special))
    unfinished = vocabulary.tokenizer.encode("\U0001f680", add_special_tokens=False)[0]
    stream(vocabulary, [special] * 50 + [unfinished] * 50)
    stream(vocabulary, [special] * 50 + [unfinished] * 50, skip=False)
    assert max(decoded, default=0) <= 22
