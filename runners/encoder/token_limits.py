"""Which token ids a model can read, and whether its tokenizer makes others.

An id beyond an embedding table is an IndexError on a CPU; on a GPU it ends the CUDA context, and with it the server.
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
from runners.encoder.sequences import Reading, TokenizedText

logger = logging.getLogger(__name__)

_TOKEN_TYPE_TABLE = "token_type_embeddings"
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class _EncodingSummary:
    """What a tokenizer makes of the shortest text, or pair of texts, padding left out.

    Attributes:
        special_tokens: what it adds, by id.
        highest_type: of all tokens.
        complete: whether something of each text is left, so that their token types are seen.
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
    """What token ids must be for the model to read them.

    Attributes:
        max_length: most tokens of a text.
        vocabulary: how many token ids there are; None where the model takes any.
        token_types: how many token type ids there are; 0 where the model takes none, None where it takes any.
        unreadable: the tokens that the tokenizer can make and the model has no embedding for, by id.
        covers_tokenizer: whether the model reads whatever the tokenizer makes, so that its texts need no check.
    """

    max_length: int
    vocabulary: int | None
    token_types: int | None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    covers_tokenizer: bool = False

    @classmethod
    def of(cls, model: PreTrainedModel, max_length: int, takes_token_types: bool) -> TokenLimits:
        """Those of a model by its embedding tables, whose weights may be on the meta device."""
        return cls(max_length, count_token_ids(model), count_token_types(model) if takes_token_types else 0)

    def compare(
        self,
        tokenizer: PreTrainedTokenizerBase,
        add_special_tokens: bool = True,
        accepts_pairs: bool = True,
        needs_pairs: bool = False,
        needed_tokens: Collection[int] = (),
    ) -> TokenLimits:
        """The same limits, and what a tokenizer makes that is beyond them; one warning tells of that.

        Args:
            tokenizer: a fast tokenizer.
            add_special_tokens: whether texts get its special tokens.
            accepts_pairs: whether a text may be a pair.
            needs_pairs: whether every text is one.
            needed_tokens: ids of tokens that every text must have beside the special ones.

        Raises:
            ModelLoadError: the model cannot read a token, or a token type, that every text has.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        pair = _EncodingSummary.of(backend.encode("a", "a", add_special_tokens=add_special_tokens), 2)
        every = (
            pair if needs_pairs else _EncodingSummary.of(backend.encode("a", add_special_tokens=add_special_tokens), 1)
        )
        summaries = [every, pair] if accepts_pairs else [every]
        tokens = {index: token for token, index in backend.get_vocab(with_added_tokens=True).items()}
        for summary in summaries:
            # A post-processor may add tokens that the vocabulary does not have.
            tokens |= summary.special_tokens
        unreadable = self._find_unreadable(tokens, {*every.special_tokens, *needed_tokens})
        highest = max(summary.highest_type for summary in summaries)
        types_fit = self.token_types in (0, None) or highest < self.token_types
        if not types_fit:
            self._refuse_types(every.highest_type, highest)
        known = self.token_types == 0 or all(summary.complete for summary in summaries)
        return replace(self, unreadable=unreadable, covers_tokenizer=not unreadable and types_fit and known)

    def _find_unreadable(self, tokens: Mapping[int, str], needed: Collection[int]) -> dict[int, str]:
        """Those tokens that the model has no embedding for, by id.

        Raises:
            ModelLoadError: one of them is needed.
        """
        if self.vocabulary is None:
            return {}
        for index in sorted(needed):
            if index >= self.vocabulary:
                raise ModelLoadError(
                    f"every text has the token {tokens.get(index, '')!r}, whose id is {index}, and the model's table "
                    f"of embeddings has {self.vocabulary} rows: the tokenizer is another model's"
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

    def check(self, reading: Reading) -> None:
        """Refuse a text of the tokenizer's before it is queued.

        Raises:
            InputError: a sequence of it has an id that the model does not know.
        """
        if self.covers_tokenizer:
            return
        for sequence in reading.sequences:
            self._check_ids(sequence.input_ids, self.vocabulary, "input_ids")
            if self.token_types != 0:
                self._check_ids(sequence.token_type_ids, self.token_types, "token_type_ids")

    def accept(self, given: TokenInput) -> Reading:
        """A text as the caller has tokenized it; it is not truncated, since its last token may be a special one.

        Raises:
            InputError: it is too long, or has an id that the model does not know.
        """
        ids, types = given.input_ids, given.token_type_ids
        if len(ids) > self.max_length:
            raise InputError(f"it has {len(ids)} tokens; the model takes {self.max_length}")
        self._check_ids(ids, self.vocabulary, "input_ids")
        if types is not None and self.token_types == 0:
            raise InputError("it has token_type_ids, and the model takes none")
        if types is not None:
            self._check_ids(types, self.token_types, "token_type_ids")
        text = TokenizedText(ids, np.zeros_like(ids) if types is None else types, None, truncated=False)
        return Reading(text, [text])

    def _check_ids(self, ids: NDArray[np.int64], count: int | None, name: str) -> None:
        if not len(ids):
            return
        low, high = int(ids.min()), int(ids.max())
        if low >= 0 and (count is None or high < count):
            return
        wrong = low if low < 0 else high
        token = f" ({self.unreadable[wrong]!r})" if name == "input_ids" and wrong in self.unreadable else ""
        known = "at least 0" if count is None else f"0 to {count - 1}"
        raise InputError(f"{wrong}{token} is none of the model's {name}, which are {known}")


def count_token_ids(model: PreTrainedModel) -> int | None:
    """How many token ids a model has embeddings for: the rows of its table, else what its config says.

    None where neither says it: CANINE hashes whatever it is given.
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
    """How many token type ids a model reads; None for any.

    Some have no table of them: they ignore them, as DeBERTa, compare them, as XLNet, or look them up among the token
    ids, as GPT-2, so that their limit is that of token ids.
    """
    tables = [module for name, module in model.named_modules() if name.rpartition(".")[2] == _TOKEN_TYPE_TABLE]
    return min((rows for rows in map(_rows, tables) if rows is not None), default=count_token_ids(model))


def find_padding_id(model: PreTrainedModel) -> int:
    """What pads texts: the config's padding token where the model has an embedding for that, else 0.

    Some configs have none, or a negative one.
    """
    padding_id = getattr(model.config.get_text_config(), "pad_token_id", None)
    count = count_token_ids(model)
    return padding_id if isinstance(padding_id, int) and 0 <= padding_id < (count or padding_id + 1) else 0


def _rows(table: object) -> int | None:
    weight = getattr(table, "weight", None)
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.ndim == 2 else None
