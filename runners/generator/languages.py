"""The languages of translation models (NLLB, mBART, M2M100, ...), and their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from runners.core.errors import InputError

# Number of languages that an error lists.
_LISTED = 8


@dataclass(frozen=True, slots=True)
class Language:
    """
    Attributes:
        token: the first token of an output in this language.
        before, after: the special tokens around a text in this language.
    """

    token: int
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Languages:
    """The languages of a model, read at load: a tokenizer's language is a shared state that requests must not change.

    Attributes:
        default_target: the first token of an output where a request names no language.
    """

    _by_name: Mapping[str, Language]
    default_target: int | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Languages:
        """The languages of a tokenizer that no other thread uses yet; its source language is restored."""
        translator: Any = tokenizer
        # Exactly the tokenizers of translation models in `transformers` have this method.
        if not hasattr(translator, "_build_translation_inputs"):
            return cls({})
        found: dict[str, Language] = {}
        source = translator.src_lang
        try:
            for name, token in _name_tokens(translator).items():
                translator.src_lang = name
                found[name] = Language(token, tuple(translator.prefix_tokens), tuple(translator.suffix_tokens))
        finally:
            translator.src_lang = source
        target = found.get(translator.tgt_lang) if translator.tgt_lang is not None else None
        return cls(found, None if target is None else target.token)

    def find(self, name: str, param: str) -> Language:
        """
        Args:
            param: the parameter's name, for the error.

        Raises:
            InputError: the model has no languages, or none of this name.
        """
        if not self._by_name:
            raise InputError(f"{param} is {name!r}, but this model's tokenizer has no languages to choose from")
        if name not in self._by_name:
            names = sorted(self._by_name)
            rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            raise InputError(
                f"{param} is {name[:40]!r}, which is none of the model's languages: {', '.join(names[:_LISTED])}{rest}"
            )
        return self._by_name[name]


def _name_tokens(tokenizer: Any) -> dict[str, int]:
    """The token of each language that the vocabulary has, by the tokenizer's name for the language."""
    special = {*map(str, tokenizer.special_tokens_map.values())}
    names = getattr(tokenizer, "lang_code_to_id", None) or [
        name for name in map(str, tokenizer.extra_special_tokens) if name not in special
    ]
    find = getattr(tokenizer, "get_lang_id", tokenizer.convert_tokens_to_ids)
    return {name: token for name in names if (token := find(name)) not in (None, tokenizer.unk_token_id)}
