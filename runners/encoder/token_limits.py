"""Which token ids a model has embeddings for, and whether its tokenizer can produce others.

An id beyond an embedding table raises an IndexError on a CPU. On a GPU it destroys the CUDA context, and so the server.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.core.errors import InputError, ModelLoadError
from runners.core.predictions import TokenInput
from runners.encoder.sequences import EncodedText, TokenizedText

logger = logging.getLogger(__name__)

_TOKEN_TYPE_TABLE = "token_type_embeddings"
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class _EncodingSummary:
    """What a tokenizer adds to a short text or pair.

    Attributes:
        special_tokens: the special tokens, by id.
        highest_type: the highest token type id.
        complete: whether each text has a token, so that `highest_type` covers the token types of all texts.
    """

    special_tokens: Mapping[int, str]
    highest_type: int
    complete: bool

    @classmethod
    def of(cls, encoding: Encoding, texts: int) -> _EncodingSummary:
        real = [position for position, attended in enumerate(encoding.attention_mask) if attended]
        added = [position for position in real if encoding.special_tokens_mask[position]]
        return cls(
            {encoding.ids[position]: encoding.tokens[position] for position in added},
            max((encoding.type_ids[position] for position in real), default=0),
            {*range(texts)} <= {*encoding.sequence_ids},
        )


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """Limits of the token ids that a model takes.

    Attributes:
        max_length: longest sequence in tokens.
        vocabulary: the number of token ids; None if the model takes any.
        token_types: the number of token type ids; 0 if the model takes none, None if it takes any.
        unreadable: tokens that the tokenizer can produce and the model has no embedding for, by id.
        covers_tokenizer: whether the model takes all ids that the tokenizer produces, so that texts need no check.
    """

    max_length: int
    vocabulary: int | None
    token_types: int | None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    covers_tokenizer: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel, max_length: int, takes_token_types: bool) -> TokenLimits:
        """The limits by the model's embedding tables; its weights may be on the meta device."""
        return cls(max_length, count_token_ids(model), count_token_types(model) if takes_token_types else 0)

    def compare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        add_special_tokens: bool = True,
        accepts_pairs: bool = True,
        needs_pairs: bool = False,
        needed_tokens: Collection[int] = (),
    ) -> TokenLimits:
        """The same limits, with `unreadable` and `covers_tokenizer` by a tokenizer; warns of unreadable tokens.

        Args:
            tokenizer: a fast tokenizer.
            add_special_tokens: whether texts get its special tokens.
            accepts_pairs: whether a text may be a pair.
            needs_pairs: whether every text is a pair.
            needed_tokens: ids of tokens that every text must have, beside the special tokens.

        Raises:
            ModelLoadError: the model has no embedding for a token, or a token type, that every text has.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        pair = _EncodingSummary.of(backend.encode("a", "a", add_special_tokens=add_special_tokens), 2)
        every = (
            pair if needs_pairs else _EncodingSummary.of(backend.encode("a", add_special_tokens=add_special_tokens), 1)
        )
        summaries = [every, pair] if accepts_pairs else [every]
        tokens = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
        for summary in summaries:
            # A post-processor may add tokens that are not in the vocabulary.
            tokens |= summary.special_tokens
        unreadable = self._find_unreadable(tokens, {*every.special_tokens, *needed_tokens})
        highest = max(summary.highest_type for summary in summaries)
        types_fit = self.token_types in (0, None) or highest < self.token_types
        if not types_fit:
            self._refuse_types(every.highest_type, highest)
        types_known = self.token_types == 0 or all(summary.complete for summary in summaries)
        return replace(self, unreadable=unreadable, covers_tokenizer=not unreadable and types_fit and types_known)

    def _find_unreadable(self, tokens: Mapping[int, str], needed: Collection[int]) -> dict[int, str]:
        """The tokens that the model has no embedding for, by id.

        Args:
            tokens: all tokens of the tokenizer, by id.
            needed: ids of tokens that every text has.

        Raises:
            ModelLoadError: one of them is needed.
        """
        if self.vocabulary is None:
            return {}
        for index in sorted(needed):
            if index >= self.vocabulary:
                raise ModelLoadError(
                    f"every text has the token {tokens.get(index, '')!r}, whose id is {index}, and the model's table "
                    f"of embeddings has {self.vocabulary} rows: the tokenizer belongs to another model"
                )
        unreadable = {index: tokens[index] for index in sorted(tokens) if index >= self.vocabulary}
        if unreadable:
            named = ", ".join(f"{token!r} ({index})" for index, token in islice(unreadable.items(), _MOST_NAMED))
            logger.warning(
                "the tokenizer has %d tokens beyond the %d rows of the model's table of embeddings; texts with them "
                "are refused: %s%s", len(unreadable), self.vocabulary, named,
                ", ..." if len(unreadable) > _MOST_NAMED else ""
            )  # fmt: skip
        return unreadable

    def _refuse_types(self, of_every_text: int, highest: int) -> None:
        """
        Raises:
            ModelLoadError: the model cannot read the token types of any text.
        """
        assert self.token_types is not None
        rows = f"the model's table of token types has {self.token_types} rows"
        if of_every_text >= self.token_types:
            raise ModelLoadError(f"every text has the token type {of_every_text}, and {rows}")
        logger.warning("pairs have the token type %d, and %s; pairs are refused", highest, rows)

    def check(self, encoded: EncodedText) -> None:
        """Refuse a tokenized text before it is queued.

        Raises:
            InputError: it has an id that the model has no embedding for.
        """
        if self.covers_tokenizer:
            return
        for sequence in encoded.sequences:
            self._check_ids(sequence.input_ids, self.vocabulary, "input_ids")
            if self.token_types != 0:
                self._check_ids(sequence.token_type_ids, self.token_types, "token_type_ids")

    def encode(self, text: TokenInput) -> EncodedText:
        """Check a text that the caller has tokenized; it is not truncated, since its last token may be a special one.

        Raises:
            InputError: it is too long, or has an id that the model has no embedding for.
        """
        ids, types = text.input_ids, text.token_type_ids
        if len(ids) > self.max_length:
            raise InputError(f"it has {len(ids)} tokens; the model takes {self.max_length}")
        self._check_ids(ids, self.vocabulary, "input_ids")
        if types is not None and self.token_types == 0:
            raise InputError("it has token_type_ids, and the model takes none")
        if types is not None:
            self._check_ids(types, self.token_types, "token_type_ids")
        tokenized = TokenizedText(ids, np.zeros_like(ids) if types is None else types, None, truncated=False)
        return EncodedText(tokenized, [tokenized])

    def _check_ids(self, ids: NDArray[np.int64], count: int | None, name: str) -> None:
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low >= 0 and (count is None or high < count):
            return
        wrong = low if low < 0 else high
        token = f" ({self.unreadable[wrong]!r})" if name == "input_ids" and wrong in self.unreadable else ""
        valid_ids = "at least 0" if count is None else f"0 to {count - 1}"
        raise InputError(f"{wrong}{token} is none of the model's {name}, which are {valid_ids}")


def count_token_ids(model: PreTrainedModel) -> int | None:
    """The number of token ids that a model has embeddings for: the rows of its table, else its config's `vocab_size`.

    None if neither exists: CANINE hashes any id.
    """
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        table = None
    if (rows := _rows(table)) is not None:
        return rows
    count = getattr(model.config.get_text_config(), "vocab_size", None)
    return count if isinstance(count, int) and count > 0 else None


def count_token_types(model: PreTrainedModel) -> int | None:
    """The number of token type ids that a model takes; None if it takes any.

    A model without a table of token types ignores them (DeBERTa), compares them (XLNet), or looks them up in the table
    of token ids (GPT-2); so its limit is that of token ids.
    """
    tables = [module for name, module in model.named_modules() if name.rpartition(".")[2] == _TOKEN_TYPE_TABLE]
    return min((rows for rows in map(_rows, tables) if rows is not None), default=count_token_ids(model))


def find_padding_id(model: PreTrainedModel) -> int:
    """The token id of padding: that of the config if the model has an embedding for it, else 0.

    Some configs have none, or a negative one.
    """
    padding_id = getattr(model.config.get_text_config(), "pad_token_id", None)
    count = count_token_ids(model)
    return padding_id if isinstance(padding_id, int) and 0 <= padding_id < (count or padding_id + 1) else 0


def _rows(table: object) -> int | None:
    """The rows of an embedding table; None if the object is no such table."""
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None
