"""Constraints: what they let through, token by token, and what is refused."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from runners.core.errors import InputError
from runners.core.generation import Constraint
from runners.generator.constraints import GrammarMatcher, Grammars, fill_masks
from runners.generator.vocabulary import Vocabulary
from tests.families import albert_unigram, deberta_unigram, roberta_bpe, wordpiece
from tests.llama_tokenizer import byte_fallback_unigram

ENDS = frozenset({2, 4})
SCHEMA = json.dumps({"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]})

# As large as what the limits are for.
OPTIONAL = json.dumps({"type": "object", "properties": {f"property_{i}": {"type": "integer"} for i in range(300)}})


@functools.cache
def grammars(make: Callable[[], PreTrainedTokenizerBase] = roberta_bpe, ends: frozenset[int] = ENDS) -> Grammars:
    vocabulary = Vocabulary(make())
    return Grammars(vocabulary, len(vocabulary.tokenizer) + 5, ends)


def allowed(matcher: GrammarMatcher) -> set[int]:
    bits = np.unpackbits(fill_masks([matcher]).view(np.uint8), bitorder="little")
    return set(np.flatnonzero(bits[: matcher.size]).tolist())


def token_of(text: str) -> int:
    token: int = roberta_bpe().get_vocab()[text]
    return token


def takes(matcher: GrammarMatcher, tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokens of a text are allowed one after the other, and the text is then complete."""
    for token in tokenizer.encode(text, add_special_tokens=False):
        if token not in allowed(matcher):
            return False
        matcher.consume(token)
    return bool(ENDS & allowed(matcher))


@pytest.mark.parametrize(
    ("constraint", "text", "fits"),
    [
        (Constraint("regex", "[a-c]+"), "abc", True),
        (Constraint("regex", "[a-c]+"), "abd", False),
        (Constraint("regex", ""), "", True),
        (Constraint("choice", ("red", 'two "words"\n')), 'two "words"\n', True),
        (Constraint("choice", ("red", "blue")), "re", False),
        (Constraint("json_object"), '{"a": [1, null]}', True),
        (Constraint("json_object"), "[1]", False),
        (Constraint("json", '{"type": "number", "multipleOf": 0.25}'), "1.75", True),
        (Constraint("json", '{"type": "integer", "multipleOf": 1000000}'), "3000000", True),
        (Constraint("json", OPTIONAL), '{"property_7": 1, "property_290": 2}', True),
        (Constraint("json", SCHEMA), '{"age": 42}', True),
        # Spaces are the model's choice, as in vLLM.
        (Constraint("json", SCHEMA), '{ "age" :\n42 }', True),
        (Constraint("json", SCHEMA), '{"age": "42"}', False),
        # What a schema does not name is not there, unless it says so.
        (Constraint("json", SCHEMA), '{"age": 42, "b": 1}', False),
        (Constraint("json", f'{{"type": "array", "items": {SCHEMA}}}'), '[{"age": 42, "b": 1}]', False),
        (Constraint("json", SCHEMA.replace("{", '{"additionalProperties": true, ', 1)), '{"age": 42, "b": 1}', True),
        (Constraint("json", f'{{"allOf": [{SCHEMA}, {{"required": ["b"]}}]}}'), '{"age": 42, "b": 1}', True),
        (Constraint("json", SCHEMA.replace("{", '{"anyOf": [{"required": ["b"]}], ', 1)), '{"age": 42, "b": 1}', True),
        (Constraint("grammar", 'start: "a" start | "b"'), "aab", True),
        (Constraint("grammar", 'root ::= "a" root | "b"'), "aab", True),
        (Constraint("grammar", 'root ::= "a" root | "b"'), "aa", False),
    ],
)
def test_what_fits_is_allowed(constraint: Constraint, text: str, fits: bool) -> None:
    assert takes(grammars().compile(constraint), roberta_bpe(), text) is fits


@pytest.mark.parametrize("pattern", [" ?[a-z]{3,5} [0-9]{2}", "maybe", "a b c"])
@pytest.mark.parametrize("make", [roberta_bpe, byte_fallback_unigram, wordpiece, albert_unigram, deberta_unigram])
def test_every_kind_of_tokenizer_is_known(make: Callable[[], PreTrainedTokenizerBase], pattern: str) -> None:
    """Walk the first token that is allowed, whatever it is: the text fits, also where there is but one."""
    vocabulary = Vocabulary(make())
    matcher = grammars(make).compile(Constraint("regex", pattern))
    data = b""
    while True:
        tokens = allowed(matcher)
        if tokens <= ENDS:
            break
        token = min(tokens - ENDS)
        data += vocabulary.data(token)
        matcher.consume(token)
    assert re.fullmatch(pattern, data.decode())


def test_all_end_tokens_come_where_the_text_may_be_complete() -> None:
    matcher = grammars().compile(Constraint("regex", "ab?"))
    assert not ENDS & allowed(matcher)
    matcher.consume(token_of("a"))
    assert allowed(matcher) >= ENDS
    matcher.consume(token_of("b"))
    assert allowed(matcher) == ENDS
    # The end token says so.
    assert not matcher.is_complete


def test_without_an_end_token_a_text_ends_where_nothing_may_follow() -> None:
    matcher = grammars(ends=frozenset()).compile(Constraint("regex", "ab?"))
    matcher.consume(token_of("a"))
    assert not matcher.is_complete
    matcher.consume(token_of("b"))
    assert matcher.is_complete


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint("regex", "("), "the regex cannot be used: .*unclosed group"),
        (Constraint("regex", "a\0"), "the regex has a NUL character"),
        (Constraint("regex", "a" * 70_000), "the regex has more than 65536 characters"),
        (Constraint("regex", "(?=a)b"), "the regex cannot be used: .*look-around"),
        (Constraint("choice", ()), "the choice is empty"),
        (Constraint("choice", ("a" * 40_000, "b" * 40_000)), "the choice has more than 65536 characters"),
        (Constraint("grammar", " "), "the grammar cannot be used: "),
        (Constraint("grammar", ""), "the grammar is empty"),
        (Constraint("grammar", "nonsense"), "the grammar cannot be used: .*Expected ::="),
        (Constraint("grammar", "start: missing"), "the grammar cannot be used: .*missing"),
        (Constraint("grammar", 'root ::= "a"' + " " * 20_000), "in EBNF it may have 16384 characters"),
        (Constraint("grammar", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000), "the grammar cannot be used: .*recursion"),
        (Constraint("json", ""), "the JSON schema is empty"),
        (Constraint("json", "{"), "the JSON schema cannot be used: Expecting"),
        (Constraint("json", "[]"), "the JSON schema cannot be used: "),
        (Constraint("json", '{"type": "strin"}'), "the JSON schema cannot be used: Invalid type: strin"),
        (Constraint("json", '{"uniqueItems": true, "type": "array"}'), r'cannot be used: Unimplemented keys: \["uniqueItems"\]'),
        (Constraint("json", '{"$ref": "http://example.com/a.json"}'), "the JSON schema cannot be used: "),
        (Constraint("json", '{"a":' * 300 + "1" + "}" * 300), "the JSON schema cannot be used: recursion limit"),
        (Constraint("json", '{"type": "integer", "minimum": 5, "maximum": 1}'), "the JSON schema cannot be used: "),
        (Constraint("json", '{"type": "integer", "multipleOf": 999983}'), "the JSON schema has a multipleOf that is too large"),
        (Constraint("json", '{"type": "integer", "multiple\\u004ff" : 99998.3e1}'), "the JSON schema has a multipleOf"),
        (Constraint("json", json.dumps({"allOf": [{"multipleOf": size} for size in (101, 103, 107)]})), "multipleOf"),
        (Constraint("grammar", 'start: %json {"type": "integer", "multipleOf": 999983}'), "the grammar has a multipleOf"),
        (Constraint("grammar", 'start: start "a"'), "the grammar cannot be used: no text can match it"),
        (Constraint("json", '{"$ref": "#"}'), "the JSON schema cannot be used: no text can match it"),
        (Constraint("json", json.dumps({"properties": {f"{i}": {} for i in range(1000)}})), "it is too complex or too ambig"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(constraint: Constraint, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        grammars().compile(replace(constraint, param="response_format"))
    assert refused.value.param == "response_format"
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_a_constraint_that_becomes_too_complex_says_so() -> None:
    matcher = grammars().compile(
        Constraint("grammar", 'start: start start start | start start | "a" | "b"', "structured_outputs")
    )
    # Each step of such a grammar takes longer than the one before.
    for _ in range(200):
        fill_masks([matcher])
        if matcher.error is not None:
            break
        matcher.consume(token_of("a"))
    assert matcher.error is not None
    assert "the constraint cannot be used: it is too complex or too ambiguous" in str(matcher.error)
    assert matcher.error.param == "structured_outputs"


def test_a_tokenizer_that_cannot_be_wrapped_costs_only_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Grammars) -> Any:
        raise ValueError("an unknown kind")

    monkeypatch.setattr(Grammars, "_wrap", fail)
    with pytest.raises(InputError, match="this model's tokenizer takes no constraints"):
        Grammars(Vocabulary(roberta_bpe()), 3000, ENDS).compile(Constraint("json_object"))
