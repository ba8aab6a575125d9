"""The forward passes of a batch of sequences: first the prompts, then a token of each row, with a key-value cache.

Rows of one batch may have started at different times. Whether a model supports that (positions by row, padding at the
left of the cache) is tested at load.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from runners.generator.kv_cache import GrowingCache, join_masks
from runners.generator.positions import find_restart, find_row_positions
from runners.generator.row_rope import RowRope
from runners.generator.stock_sequence import StockSequence
from runners.modeling.attention import SparseAttention

# Attributes in which RecurrentGemma keeps the state that other models keep in a cache.
_MODULE_STATES = ("recurrent_states", "conv1d_state")


class Batching(StrEnum):
    """The ways in which sequences can share a batch."""

    CONTINUOUS = "continuous batches"
    TOGETHER = "batches that start together"
    ALONE = "one sequence at a time"


@dataclass(slots=True)
class Rows:
    """The rows of sequences that run together.

    Attributes:
        cache: the cache of all rows; an `EncoderDecoderCache` for encoder-decoders.
        mask: [rows, columns], the columns of the (decoder's) cache that a row has; the others are padding.
        lengths: number of columns that each row has once its prompt is complete, [rows].
        encoder_mask: as `mask`, for the encoder's output; None without an encoder.
        stock: runs a sequence that shares no batch, or its beams; there is no cache then.
    """

    cache: Any
    mask: Tensor
    lengths: list[int]
    encoder_mask: Tensor | None = None
    stock: StockSequence | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they had; a row that is given twice becomes two rows."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        self.lengths = [self.lengths[row] for row in rows]
        if self.encoder_mask is not None:
            self.encoder_mask = self.encoder_mask[index]
        parts = self._growing()
        if not parts:
            self._reorder(index)
            return
        self.mask = _select(parts[0], index, self.mask)
        if self.encoder_mask is not None:
            self.encoder_mask = _select(parts[1], index, self.encoder_mask)

    def copy(self, rows: Sequence[int]) -> Rows:
        """A copy of these rows; only for continuous batches."""
        cache = copy.copy(self.cache)
        if isinstance(cache, EncoderDecoderCache):
            decoded, encoded = cache.self_attention_cache, cache.cross_attention_cache
            assert isinstance(decoded, GrowingCache), "continuous batches have no other"
            assert isinstance(encoded, GrowingCache), "continuous batches have no other"
            cache.self_attention_cache, cache.cross_attention_cache = decoded.share(), encoded.share()
            cache.is_updated = dict(cache.is_updated)
        else:
            assert isinstance(cache, GrowingCache), "continuous batches have no other"
            cache = cache.share()
        part = replace(self, cache=cache)
        part.keep(rows)
        return part

    def follow(self, sources: Sequence[int]) -> None:
        """Replace rows by others with the same prompt and length.

        Args:
            sources: for each row, the row that it continues.
        """
        moved = [(row, source) for row, source in enumerate(sources) if row != source]
        if not moved:
            return
        parts = self._growing()
        if not parts:
            self._reorder(torch.tensor(sources, device=self.mask.device))
            return
        targets, origins = torch.tensor(moved, device=self.mask.device).T
        # The masks and the cached encoder outputs of these rows are equal.
        parts[0].copy(origins, targets)

    def _reorder(self, rows: Tensor) -> None:
        if self.stock is not None:
            self.stock.keep(rows)
        else:
            self.cache.reorder_cache(rows)

    def join(self, other: Rows) -> None:
        """Append other rows; only for continuous batches."""
        for part, other_part in zip(self._growing(), other._growing(), strict=True):
            part.join(other_part)
        self.mask = join_masks(self.mask, other.mask)
        self.lengths = self.lengths + other.lengths
        if self.encoder_mask is not None and other.encoder_mask is not None:
            self.encoder_mask = join_masks(self.encoder_mask, other.encoder_mask)

    def _growing(self) -> list[GrowingCache]:
        """The caches that rows can join: the decoder's, and that of the encoder's output."""
        caches = (
            [self.cache.self_attention_cache, self.cache.cross_attention_cache]
            if isinstance(self.cache, EncoderDecoderCache)
            else [self.cache]
        )
        return [cache for cache in caches if isinstance(cache, GrowingCache)]


class Prefill:
    """Prompts that are computed into the cache, some columns at a time.

    Attributes:
        ids: token ids, [rows, columns].
        mask: [rows, columns], the columns that are tokens of a row's prompt; the others are padding.
        done: number of columns that have been computed.
        logits: of the columns that were computed last, [rows, columns, vocabulary], if `keep_logits` is set.
    """

    def __init__(self, ids: Tensor, mask: Tensor, rows: Rows, keep_logits: bool, lengths: Sequence[int]) -> None:
        """
        Args:
            lengths: number of tokens of each row's prompt.
        """
        self.ids = ids
        self.mask = mask
        self.rows = rows
        self.keep_logits = keep_logits
        self.done = 0
        self.logits: Tensor | None = None
        self._lengths = lengths

    def count_tokens(self, start: int) -> int:
        """The tokens of prompts in the columns from `start` on that have been computed; the others are padding."""
        width = self.ids.shape[1]
        # Prompts that are computed in parts are padded at the left. The mask would have to be fetched from the device.
        return sum(max(0, self.done - max(start, width - length)) for length in self._lengths)


class Decoder:
    """A causal model or an encoder-decoder, run in steps.

    Attributes:
        batching: how sequences share batches.
        restarts_above: number of tokens above which a sequence is computed anew from its first token; None where cached
            tokens stay valid.
    """

    def __init__(self, model: PreTrainedModel, decoder_start: int | None) -> None:
        """
        Args:
            decoder_start: the token that an encoder-decoder begins with; None for a causal model.
        """
        self.model = model
        self.batching = Batching.CONTINUOUS
        self.start_token = decoder_start
        parameters = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._takes_last_only = "logits_to_keep" in parameters
        self._row_positions = [] if self._takes_positions else list(find_row_positions(model))
        decoding: Any = model if decoder_start is None else model.get_decoder()  # type: ignore[no-untyped-call]
        self.rope = RowRope(decoding)
        self._encoder_rope = None if decoder_start is None else RowRope(model.get_encoder())
        self._sparse_attention = SparseAttention(model)
        self._states = [
            (module, name) for module in model.modules() for name in _MODULE_STATES if hasattr(module, name)
        ]
        self.restarts_above = None if self.rope.limit is None else find_restart(model)

    @property
    def has_encoder(self) -> bool:
        return self.start_token is not None

    def start(self, prompts: Sequence[Sequence[int]], keep_logits: bool = False) -> Prefill:
        """Begin to compute prompts; `advance` computes them.

        Args:
            keep_logits: keep the logits of all columns instead of the last one; for causal models.
        """
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            # Prompts of encoders are padded at the right, those of causal models at the left.
            columns = slice(0, len(prompt)) if self.has_encoder else slice(width - len(prompt), width)
            ids[row, columns] = torch.tensor(prompt)
            mask[row, columns] = True
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        lengths = [1 if self.has_encoder else len(prompt) for prompt in prompts]
        if self.batching is Batching.ALONE:
            self.reset_state()
            rows = Rows(None, mask, lengths, stock=StockSequence(self.model, ids, self.start_token, keep_logits))
        else:
            rows = Rows(self._new_cache(), mask[:, :0], lengths)
        return Prefill(ids, mask, rows, keep_logits, [*map(len, prompts)])

    def reset_state(self) -> None:
        """Reset the state that earlier sequences left in the stock model: dynamic scaling, BigBird's attention, ..."""
        self.rope.reset()
        for module, name in self._states:
            setattr(module, name, None)
        self._sparse_attention.restore(1)

    def advance(self, prefill: Prefill, tokens: int) -> Tensor | None:
        """Compute a part of the prompts.

        Args:
            tokens: about how many tokens are computed; models that cannot compute parts compute all.

        Returns:
            The logits of the first tokens, [rows, vocabulary], once the prompts are complete.
        """
        if prefill.rows.stock is not None:
            prefill.done = prefill.ids.shape[1]
            logits = prefill.rows.stock.start()
            if prefill.keep_logits:
                prefill.logits = logits
            return _last(logits)
        if self.has_encoder:
            return self._encode(prefill)
        width = prefill.ids.shape[1]
        columns = max(1, tokens // len(prefill.ids)) if self.batching is Batching.CONTINUOUS else width
        end = min(width, prefill.done + columns)
        prefill.rows.mask = prefill.mask[:, :end]
        logits = self._decode(prefill.rows, prefill.ids[:, prefill.done : end], prefill.keep_logits)
        if prefill.keep_logits:
            prefill.logits = logits
        prefill.done = end
        return _last(logits) if end == width else None

    def step(self, rows: Rows, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; returns the logits of the next tokens, [rows, vocabulary]."""
        rows.lengths = [length + 1 for length in rows.lengths]
        if rows.stock is not None:
            return rows.stock.step(tokens)
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        rows.mask = torch.cat([rows.mask, torch.ones_like(ids, dtype=torch.bool)], 1)
        if rows.encoder_mask is None:
            return _last(self._decode(rows, ids))
        # The cache has the keys and values of the encoder's output, so that only the shape of this is used.
        hidden = torch.zeros(1, 1, 1, dtype=self.model.dtype, device=self.model.device)
        return self._decode_encoded(rows, ids, hidden.expand(*rows.encoder_mask.shape, 1))

    def _encode(self, prefill: Prefill) -> Tensor:
        encoder: Any = self.model.get_encoder()
        assert self.start_token is not None
        assert self._encoder_rope is not None
        self.reset_state()
        with self._encoder_rope.at(prefill.mask.sum(1).tolist()):
            hidden = encoder(input_ids=prefill.ids, attention_mask=prefill.mask.long()).last_hidden_state
        rows = prefill.rows
        ids = torch.full_like(prefill.ids[:, :1], self.start_token)
        rows.mask = torch.ones_like(ids, dtype=torch.bool)
        rows.encoder_mask = prefill.mask
        prefill.done = prefill.ids.shape[1]
        return self._decode_encoded(rows, ids, hidden)

    def _decode(self, rows: Rows, ids: Tensor, keep_logits: bool = False) -> Tensor:
        """The logits of at least the last of these columns, or of all of them; [rows, columns, vocabulary]."""
        positions = (rows.mask.cumsum(1)[:, -ids.shape[1] :] - 1).clamp(min=0)
        options: dict[str, Any] = {"position_ids": positions} if self._takes_positions else {}
        if self._takes_last_only and not keep_logits:
            options["logits_to_keep"] = 1
        with self._at(rows, positions):
            output = self.model(
                input_ids=ids, attention_mask=rows.mask.long(), past_key_values=rows.cache, use_cache=True, **options
            )
        logits: Tensor = output.logits
        return logits

    def _decode_encoded(self, rows: Rows, ids: Tensor, hidden: Tensor) -> Tensor:
        assert rows.encoder_mask is not None
        with self._at(rows, rows.mask.sum(1, keepdim=True) - 1):
            output = self.model(
                encoder_outputs=_EncoderOutput(last_hidden_state=hidden),  # type: ignore[arg-type]
                attention_mask=rows.encoder_mask.long(), decoder_input_ids=ids,
                decoder_attention_mask=rows.mask.long(), past_key_values=rows.cache, use_cache=True,
            )  # fmt: skip
        return _last(output.logits)

    @contextlib.contextmanager
    def _at(self, rows: Rows, positions: Tensor) -> Iterator[None]:
        """Apply positions by row, [rows, columns], within the context."""
        for module in self._row_positions:
            module.positions = positions
        try:
            with self.rope.at(rows.lengths):
                yield
        finally:
            for module in self._row_positions:
                module.positions = None

    def _new_cache(self) -> Any:
        def new() -> DynamicCache:
            # The stock cache cannot be joined, but supports kinds of layers that `GrowingCache` does not.
            if self.batching is not Batching.CONTINUOUS:
                return DynamicCache(config=self.model.config.get_text_config(decoder=True))
            return GrowingCache()

        return EncoderDecoderCache(new(), new()) if self.has_encoder else new()


@dataclass
class _EncoderOutput(BaseModelOutput):
    """The output of an encoder; models with experts read `router_logits`, which is only used in training."""

    router_logits: Any = None


def _select(cache: GrowingCache, rows: Tensor, mask: Tensor) -> Tensor:
    """Keep these rows of a cache, and the columns in their mask; returns the mask of the columns that are kept."""
    columns = mask.any(0).nonzero()[:, 0]
    cache.select(rows, columns)
    return mask[:, columns]


def _last(logits: Tensor) -> Tensor:
    """The logits of the last column: [rows, columns, vocabulary] -> [rows, vocabulary]."""
    return logits[:, -1]
