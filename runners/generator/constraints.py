"""Constraints of outputs: JSON, regular expressions, choices and grammars, by llguidance, which vLLM uses too."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import llguidance
import llguidance.hf
import llguidance.numpy
import numpy as np
import numpy.typing as npt
from llguidance import gbnf_to_lark

from runners.core.errors import InputError, brief
from runners.core.generation import Constraint
from runners.generator.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# Most characters of a schema, regular expression or grammar; and of a grammar that Python converts to Lark's syntax.
_MAX_CHARACTERS = 65_536
_MAX_CONVERTED = 16_384
_MAX_MESSAGE = 500
# A lexer state takes 1 to 2 kB, and each running request has its own. Items limit the work of a step, for which the
# whole batch waits: 3000 take some 10 ms with an ambiguous grammar, and allow objects of 300 optional properties. Fuel
# limits the time of compiling, to some 0.2 s.
_LIMITS = llguidance.LLParserLimits(
    max_lexer_states=50_000, initial_lexer_fuel=200_000, step_max_items=3000, verbose_errors=False
)
# The library makes a state for each remainder of a `multipleOf`, without a limit; this many take some 50 ms.
_LARGEST_MULTIPLE = 10_000
_MULTIPLE = re.compile(r'"multipleOf"\s*:\s*([-+.0-9eE]+)')
_ESCAPE = re.compile(r"\\u00([0-9a-fA-F]{2})")
# Parts of the library's messages about constraints that exceed its limits, and about those that no text can match.
_TOO_COMPLEX = re.compile("Too many items|Current row has|ParserTooComplex|LexerTooComplex")
_IMPOSSIBLE = re.compile("NoExtension")
# Texts that a tokenizer must decode to the same bytes.
_PROBE_TEXTS = ("maybe", "a b", '{"')
# Keywords by which several schemas apply to one object: any of the first, or `properties` beside another of the second.
_COMBINING = frozenset({"allOf", "not", "if", "dependentSchemas"})
_COMBINED = frozenset({"properties", "anyOf", "oneOf", "$ref"})


class GrammarMatcher:
    """The state of one row in its constraint."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, ends: frozenset[int], param: str | None) -> None:
        """
        Args:
            size: number of tokens of a mask.
            ends: the tokens that end an output.
            param: the request's field with the constraint, for errors.
        """
        self.matcher = matcher
        self.size = size
        self._ends = ends
        self._param = param

    @property
    def is_complete(self) -> bool:
        """Whether the output is complete, for a model without an end token."""
        return not self._ends and self.matcher.is_stopped()

    @property
    def error(self) -> InputError | None:
        """The error that ends the output, if there is one."""
        return _refusal("the constraint", self.matcher.get_error(), self._param) if self.matcher.is_error() else None

    def consume(self, token: int) -> None:
        """Advance by a token that the mask allows.

        Raises:
            InputError: the constraint is too complex.
        """
        if token not in self._ends and not self.matcher.consume_token(token) and (error := self.error) is not None:
            raise error


class Grammars:
    """Makes matchers for a model."""

    def __init__(self, vocabulary: Vocabulary, size: int, ends: frozenset[int]) -> None:
        """
        Args:
            size: number of the model's logits.
            ends: the tokens that end an output; a constraint allows them where the output may be complete.
        """
        self._vocabulary = vocabulary
        self._size = size
        self._ends = ends
        # At load: this takes up to a second, half of it with the interpreter's lock.
        self._tokenizer: llguidance.LLTokenizer | None = None
        try:
            self._tokenizer = self._wrap()
        except Exception as error:
            logger.warning(
                "no constraints of outputs, because llguidance does not take the tokenizer: %s", brief(error)
            )

    def compile(self, constraint: Constraint) -> GrammarMatcher:
        """Make a matcher; takes up to a second, without the interpreter's lock.

        Raises:
            InputError: the constraint is malformed, too large, or not supported.
        """
        what, param = f"the {_NAMES.get(constraint.kind, constraint.kind)}", constraint.param
        if sum(map(len, constraint.value)) > _MAX_CHARACTERS:
            raise InputError(f"{what} has more than {_MAX_CHARACTERS} characters", param)
        if constraint.kind in ("json", "choice", "grammar") and not constraint.value:
            raise InputError(f"{what} is empty", param)
        if "\0" in constraint.value:
            raise InputError(f"{what} has a NUL character", param)
        if constraint.kind in ("json", "grammar"):
            _check_multiples(what, "".join(constraint.value), param)
        try:
            grammar = _COMPILERS[constraint.kind](constraint.value)
        except (ValueError, RecursionError) as error:
            raise _refusal(what, str(error), param) from error
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise InputError("this model's tokenizer takes no constraints", param)
        matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=_LIMITS)
        if not matcher.is_error():
            # The first mask takes the longest of all, and shows whether any text can match.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise _refusal(what, matcher.get_error(), param)
        return GrammarMatcher(matcher, tokenizer.vocab_size, self._ends, param)

    def _wrap(self) -> llguidance.LLTokenizer:
        tokenizer = self._vocabulary.tokenizer
        size = max(self._size, len(tokenizer))
        # The library needs an end token: a model without one gets the id of a token that does not exist.
        ends = sorted(self._ends) or [size]
        size = max(size, *(end + 1 for end in ends))
        # The library does not support the decoders of some tokenizers, and some add a space before a text.
        with contextlib.suppress(ValueError):
            wrapped = llguidance.hf.from_tokenizer(tokenizer, size, ends)  # type: ignore[arg-type]
            if all(wrapped.decode_bytes(wrapped.tokenize_str(text)) == text.encode() for text in _PROBE_TEXTS):
                return wrapped
        wrapper = llguidance.TokenizerWrapper(_TokenBytes(self._vocabulary, size, ends[0]))
        return llguidance.LLTokenizer(wrapper, size, ends)


class _TokenBytes:
    """A tokenizer as `llguidance` wants it, which takes the longest token at each place."""

    def __init__(self, vocabulary: Vocabulary, size: int, end: int) -> None:
        self.eos_token_id = end
        self.bos_token_id = None
        self.tokens = [vocabulary.data(token) for token in range(size)]
        self.special_token_ids = sorted(vocabulary.special)
        self._ids = {data: token for token, data in enumerate(self.tokens) if data and token not in vocabulary.special}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: str | bytes) -> list[int]:
        """The token ids of a text, up to the first place where no token fits; `llguidance` accepts a beginning."""
        data = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        start = 0
        while start < len(data):
            ends = range(min(len(data), start + self._longest), start, -1)
            end = next((end for end in ends if data[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[data[start:end]])
            start = end
        return ids


def fill_masks(matchers: Sequence[GrammarMatcher]) -> npt.NDArray[np.int32]:
    """The tokens that may come next, computed in parallel.

    Returns:
        A bit for each token, [matchers, tokens / 32].
    """
    masks = llguidance.numpy.allocate_token_bitmask(len(matchers), matchers[0].size)
    llguidance.numpy.fill_next_token_bitmask_par(
        _executor(), [(matcher.matcher, row) for row, matcher in enumerate(matchers)], masks
    )
    return masks


@functools.cache
def _executor() -> llguidance.LLExecutor:
    return llguidance.LLExecutor()


def _compile_json(schema: str) -> str:
    return llguidance.LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": True})


def _compile_schema(schema: str) -> str:
    """Compile a schema that excludes properties it does not name, unless it allows them, as vLLM's xgrammar does.

    Models invent properties otherwise. Combined schemas stay as they are: one does not name the properties of another.
    """
    parsed = json.loads(schema)
    schemas = [*_iterate_schemas(parsed)]
    if not any(_COMBINING & each.keys() or {"properties"} < _COMBINED & each.keys() for each in schemas):
        for each in schemas:
            if isinstance(each.get("properties"), dict):
                each.setdefault("additionalProperties", False)
    return _compile_json(json.dumps(parsed))


def _iterate_schemas(schema: object) -> Iterator[dict[str, Any]]:
    if not isinstance(schema, dict):
        return
    yield schema
    for name in ("properties", "$defs", "definitions"):
        if isinstance(children := schema.get(name), dict):
            for child in children.values():
                yield from _iterate_schemas(child)
    for name in ("items", "prefixItems", "anyOf", "oneOf"):
        children = schema.get(name)
        for child in children if isinstance(children, list) else [children]:
            yield from _iterate_schemas(child)


def _compile_grammar(text: str) -> str:
    if len(text) > _MAX_CONVERTED and not gbnf_to_lark.is_lark_syntax(text):
        raise ValueError(f"in EBNF it may have {_MAX_CONVERTED} characters; use Lark's syntax for more")
    return llguidance.grammar_from("grammar", text)


_COMPILERS: dict[str, Callable[..., str]] = {
    "json": _compile_schema,
    "json_object": lambda _: _compile_json('{"type": "object"}'),
    "regex": llguidance.LLMatcher.grammar_from_regex,
    "choice": lambda choices: llguidance.grammar_from("choice", json.dumps(choices)),
    "grammar": _compile_grammar,
}
_NAMES = {"json": "JSON schema", "json_object": "JSON object"}


def _check_multiples(what: str, text: str, param: str | None) -> None:
    """
    Raises:
        InputError: the least common multiple of all `multipleOf` is too large for the library.
    """
    together = 1
    for number in _MULTIPLE.findall(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)):
        digits = number.lower().partition("e")[0].replace(".", "").strip("+-0")
        together = math.lcm(together, int(digits or 1)) if len(digits) < 20 else _LARGEST_MULTIPLE + 1
        if together > _LARGEST_MULTIPLE:
            raise InputError(
                f"{what} has a multipleOf that is too large: the least common multiple of all of them, without their "
                f"powers of ten, may be {_LARGEST_MULTIPLE}",
                param,
            )


def _refusal(what: str, message: str, param: str | None) -> InputError:
    """An error with the library's message in one line."""
    line = " ".join(message.removesuffix("<non-verbose/>").split())
    if _IMPOSSIBLE.search(line):
        line = f"no text can match it ({line})"
    elif _TOO_COMPLEX.search(line):
        line = f"it is too complex or too ambiguous ({line})"
    return InputError(f"{what} cannot be used: {textwrap.shorten(line, _MAX_MESSAGE, placeholder=' ...')}", param)
