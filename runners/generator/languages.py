"""The languages of translators (NLLB, mBART, M2M100, ...): what a request's source and target mean in tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from runners.core.errors import InputError

# How many languages an error names.
_NAMED = 8


@dataclass(frozen=True, slots=True)
class Language:
    """
    Attributes:
        token: that an output in this language begins with.
        before, after: the special tokens around a text in this language.
    """

    token: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Languages:
    """Read once: a tokenizer's language is a state that all its users share, so that none is set for a request."""

    _by_name: Mapping[str, Language]
    default_target: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Languages:
        """Those of a tokenizer that nobody else uses yet; its own source language stays set."""
        translator: Any = tokenizer
        # All tokenizers of translators in `transformers` have it, and no others.
        if not hasattr(translator, "_build_translation_inputs"):
            return cls({})
        found: dict[str, Language] = {}
        own = translator.src_lang
        try:
            for name, token in _name_tokens(translator).items():
                translator.src_lang = name
                found[name] = Language(token, tuple(translator.prefix_tokens), tuple(translator.suffix_tokens))
        finally:
            translator.src_lang = own
        target = found.get(translator.tgt_lang) if translator.tgt_lang is not None else None
        return cls(found, None if target is None else target.token)

    def find(self, name: str, what: str) -> Language:
        """
        Args:
            what: the parameter's name, for errors.

        Raises:
            InputError: the model has no languages, or none of this name.
        """
        if not self._by_name:
            raise InputError(f"{what} is {name!r}, but this model's tokenizer has no languages to choose from")
        if name not in self._by_name:
            named = sorted(self._by_name)
            rest = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
            raise InputError(
                f"{what} is {name[:40]!r}, which is none of the model's languages: {', '.join(named[:_NAMED])}{rest}"
            )
        return self._by_name[name]


def _name_tokens(tokenizer: Any) -> dict[str, int]:
    """The token of each language that the vocabulary has, by the tokenizer's name for the language."""
    named = {*map(str, tokenizer.special_tokens_map.values())}
    names = getattr(tokenizer, "lang_code_to_id", None) or [
        name for name in map(str, tokenizer.extra_special_tokens) if name not in named
    ]
    find = getattr(tokenizer, "get_lang_id", tokenizer.convert_tokens_to_ids)
    return {name: token for name in names if (token := find(name)) not in (None, tokenizer.unk_token_id)}
