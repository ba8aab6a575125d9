"""The forward passes of a batch of sequences: prompts in, then a token a row, with a cache of keys and values.

Rows of one batch may have been started at different times. What that takes of a model (positions by row, padding at the
left of what it has seen) is found out by trying, at load.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from runners.generator.cache import GrowingCache, join_masks


class Batching(StrEnum):
    """How sequences may share a batch."""

    CONTINUOUS = "continuous batches"
    TOGETHER = "batches that start together"
    ALONE = "one sequence at a time"


@dataclass(slots=True)
class Rows:
    """Sequences that run together.

    Attributes:
        cache: of all rows; an `EncoderDecoderCache` for encoder-decoders.
        mask: [rows, columns], which columns of the (decoder's) cache are a row's.
        encoder_mask: the same of the encoder's output; None without an encoder.
    """

    cache: Any
    mask: Tensor
    encoder_mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.mask)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and columns that only they had."""
        index = torch.tensor(rows, device=self.mask.device)
        self.mask = self.mask[index]
        if self.encoder_mask is not None:
            self.encoder_mask = self.encoder_mask[index]
        parts = self._growing()
        if not parts:
            self.cache.reorder_cache(index)
            return
        self.mask = _select(parts[0], index, self.mask)
        if self.encoder_mask is not None:
            self.encoder_mask = _select(parts[1], index, self.encoder_mask)

    def join(self, other: Rows) -> None:
        """Add other rows below; only for continuous batches."""
        for part, other_part in zip(self._growing(), other._growing(), strict=True):
            part.join(other_part)
        self.mask = join_masks(self.mask, other.mask)
        if self.encoder_mask is not None and other.encoder_mask is not None:
            self.encoder_mask = join_masks(self.encoder_mask, other.encoder_mask)

    def _growing(self) -> list[GrowingCache]:
        """The caches that rows can join: of the decoder, and of the encoder's output."""
        caches = (
            [self.cache.self_attention_cache, self.cache.cross_attention_cache]
            if isinstance(self.cache, EncoderDecoderCache)
            else [self.cache]
        )
        return [cache for cache in caches if isinstance(cache, GrowingCache)]


class Prefill:
    """Prompts on their way into the cache, some columns at a time.

    Attributes:
        logits: after each of the columns that were computed last, [rows, columns, vocabulary], if they are kept.
    """

    def __init__(self, ids: Tensor, mask: Tensor, rows: Rows, keep_logits: bool) -> None:
        self.ids = ids
        self.mask = mask
        self.rows = rows
        self.keep_logits = keep_logits
        self.done = 0
        self.logits: Tensor | None = None


class Decoder:
    """A causal model or an encoder-decoder, run in steps."""

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
        self._row_positions = [] if decoder_start is None else list(_find_row_positions(model))

    @property
    def has_encoder(self) -> bool:
        return self.start_token is not None

    def start(self, prompts: Sequence[Sequence[int]], keep_logits: bool = False) -> Prefill:
        """Begin with prompts; `advance` computes them.

        Args:
            keep_logits: of all columns, not of the last one alone; for causal models.
        """
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            # Encoders count positions from the left, and caches are aligned at the right.
            columns = slice(0, len(prompt)) if self.has_encoder else slice(width - len(prompt), width)
            ids[row, columns] = torch.tensor(prompt)
            mask[row, columns] = True
        device = self.model.device
        seen = torch.zeros(len(prompts), 0, dtype=torch.bool, device=device)
        return Prefill(ids.to(device), mask.to(device), Rows(self._new_cache(), seen), keep_logits)

    def advance(self, prefill: Prefill, tokens: int) -> Tensor | None:
        """Compute about so many tokens of the prompts, or all where a model cannot stop in between.

        Returns:
            The logits of the first tokens, [rows, vocabulary], once the prompts are complete.
        """
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
        """Append a token to every row; the logits of the next, [rows, vocabulary]."""
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        rows.mask = torch.cat([rows.mask, torch.ones_like(ids, dtype=torch.bool)], 1)
        if rows.encoder_mask is None:
            return _last(self._decode(rows, ids))
        # The cache has keys and values of the encoder's output: only its rows and columns are looked at.
        hidden = torch.zeros(1, 1, 1, dtype=self.model.dtype, device=self.model.device)
        return self._decode_encoded(rows, ids, hidden.expand(*rows.encoder_mask.shape, 1))

    def _encode(self, prefill: Prefill) -> Tensor:
        encoder: Any = self.model.get_encoder()
        hidden = encoder(input_ids=prefill.ids, attention_mask=prefill.mask.long()).last_hidden_state
        rows = prefill.rows
        assert self.start_token is not None
        ids = torch.full_like(prefill.ids[:, :1], self.start_token)
        rows.mask = torch.ones_like(ids, dtype=torch.bool)
        rows.encoder_mask = prefill.mask
        prefill.done = prefill.ids.shape[1]
        return self._decode_encoded(rows, ids, hidden)

    def _decode(self, rows: Rows, ids: Tensor, keep_logits: bool = False) -> Tensor:
        """The logits after the last of these columns at least, or after all of them; [rows, columns, vocabulary]."""
        options: dict[str, Any] = {}
        if self._takes_positions:
            positions = rows.mask.cumsum(1)[:, -ids.shape[1] :] - 1
            options["position_ids"] = positions.clamp(min=0)
        if self._takes_last_only and not keep_logits:
            options["logits_to_keep"] = 1
        output = self.model(
            input_ids=ids, attention_mask=rows.mask.long(), past_key_values=rows.cache, use_cache=True, **options
        )
        logits: Tensor = output.logits
        return logits

    def _decode_encoded(self, rows: Rows, ids: Tensor, hidden: Tensor) -> Tensor:
        assert rows.encoder_mask is not None
        positions = rows.mask.sum(1, keepdim=True) - 1
        for module in self._row_positions:
            module.positions = positions
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),  # type: ignore[arg-type]
            attention_mask=rows.encoder_mask.long(), decoder_input_ids=ids, decoder_attention_mask=rows.mask.long(),
            past_key_values=rows.cache, use_cache=True,
        )  # fmt: skip
        for module in self._row_positions:
            module.positions = None
        return _last(output.logits)

    def _new_cache(self) -> Any:
        def new() -> DynamicCache:
            # A model's own kind of cache cannot be joined, but knows layers that ours does not.
            if self.batching is not Batching.CONTINUOUS:
                return DynamicCache(config=self.model.config.get_text_config(decoder=True))
            return GrowingCache()

        return EncoderDecoderCache(new(), new()) if self.has_encoder else new()


class _RowPositions:
    """Gives a decoder's table of absolute positions a position a row, while set.

    Such models (BART, Marian, Pegasus, M2M100, ...) take the columns of the cache for positions.
    """

    def __init__(self, module: nn.Module) -> None:
        self.positions: Tensor | None = None
        module.register_forward_hook(self._hook)

    def _hook(self, module: Any, _: Any, output: Tensor) -> Tensor:
        if self.positions is None:
            return output
        table: Tensor = module.weight if isinstance(module, nn.Embedding) else module.weights
        return table[self.positions + getattr(module, "offset", 0)].to(output.dtype)


def _find_row_positions(model: PreTrainedModel) -> Iterator[_RowPositions]:
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    for name, module in decoder.named_modules():
        has_table = isinstance(module, nn.Embedding) or isinstance(getattr(module, "weights", None), Tensor)
        if name.rpartition(".")[2] == "embed_positions" and has_table:
            yield _RowPositions(module)


def _select(cache: GrowingCache, rows: Tensor, mask: Tensor) -> Tensor:
    """Keep these rows of a cache, and the columns that the mask of these rows has; the mask of what is kept."""
    columns = mask.any(0).nonzero()[:, 0]
    cache.select(rows, columns)
    return mask[:, columns]


def _last(logits: Tensor) -> Tensor:
    """[rows, columns, vocabulary] to that of the last column."""
    return logits[:, -1]
