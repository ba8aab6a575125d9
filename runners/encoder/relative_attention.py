"""Packed attention for models with relative positions, which call no attention function or make a bias of all rows.

DeBERTa, DeBERTa-v2 and MPNet compute attention in code of their own. It is replaced by packed attention while batches
are packed. Their encoders, and T5's, also make tensors of all pairs of rows; these are made for the longest text only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from runners.encoder.biased_attention import MakeBias, attend_with_bias, find_longest, take_bias
from runners.encoder.packed_attention import Layout, current

# Distances are looked up once for texts of so many tokens, and again for longer ones.
_LEAST_TOKENS = 512
# A method of a module that is replaced: the module, the method's name, what replaces it.
_Replacement = tuple[nn.Module, str, Callable[..., Any]]


class RelativeAttention:
    """Replaces the attention of such a model, and restores it; it does nothing to other models."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._replaced: list[tuple[nn.Module, str]] = []

    def attach(self) -> None:
        self.detach()
        for module in self._model.modules():
            if (find := _MODULES.get(type(module).__name__)) is None:
                continue
            for owner, name, method in find(module):
                setattr(owner, name, method)
                self._replaced.append((owner, name))

    def detach(self) -> None:
        for owner, name in self._replaced:
            vars(owner).pop(name, None)
        self._replaced.clear()


class _DisentangledAttention:
    """The attention of a layer of DeBERTa (https://arxiv.org/abs/2006.03654, equation 4).

    The score of tokens i and j is (q_i k_j + q_i p_(i-j) + k_j r_(i-j)) / scale. p and r are projections of the
    embeddings of the distance i - j. They do not depend on the batch, and are computed once.
    """

    def __init__(self, module: Any, encoder: Any) -> None:
        """
        Raises:
            ValueError: the model computes attention in another way.
        """
        if getattr(module, "talking_head", False):
            raise ValueError("its attention mixes heads")
        self._module = module
        self._embed: Callable[[], Tensor] = partial(type(encoder).get_rel_embedding, encoder)
        self._heads: int = module.num_attention_heads
        width = module.all_head_size // self._heads
        self._scale = (width * (1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c")))) ** -0.5
        self._tables: tuple[Tensor | None, Tensor | None] | None = None
        self._indices = torch.empty(0, dtype=torch.int64)

    def __call__(
        self, hidden_states: Tensor, *_: Any, query_states: Tensor | None = None, **__: Any
    ) -> tuple[Tensor, None]:
        """[1, T, hidden] to [1, T, heads * d], and no attention weights."""
        if query_states is not None:
            raise NotImplementedError("queries of other rows")
        layout: Layout = current.layout
        _count_call(layout)
        query, key, value = self._project(hidden_states)
        make_bias = self._make_bias(find_longest(layout, query))
        return attend_with_bias(query, key, value, layout, self._scale, make_bias).flatten(2), None

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values: [1, heads, T, d] each."""
        module = self._module
        layers = (module.query_proj, module.key_proj, module.value_proj)
        return tuple(self._split(layer(hidden_states)).transpose(1, 2) for layer in layers)

    def _split(self, rows: Tensor) -> Tensor:
        """[..., heads * d] to [..., heads, d]."""
        return rows.view(*rows.shape[:-1], self._heads, -1)

    def _make_bias(self, longest: int) -> MakeBias:
        """For texts of at most so many tokens."""
        if not self._module.relative_attention or not self._module.pos_att_type:
            return lambda queries, _: queries.new_zeros((1, 1, queries.shape[2], queries.shape[2]))
        content, positions = self._find_tables()
        indices = self._index(longest)
        # By falling and by rising distance i - j, [2 * longest - 1, heads, d] each.
        falling = None if content is None else content.index_select(0, indices.flip(0))
        rising = None if positions is None else positions.index_select(0, indices)

        def make(queries: Tensor, keys: Tensor) -> Tensor:
            texts, _, tokens, _ = queries.shape
            columns = 2 * tokens - 1
            near = slice(longest - tokens, longest + tokens - 1)
            parts = []
            for rows, table, strides in (
                # Row i has the distance i - j in column tokens - 1 - i + j.
                (queries, falling, (columns - 1, 1)),
                # Row j has the distance i - j in column tokens - 1 + i - j.
                (keys, rising, (1, columns - 1)),
            ):
                if table is None:
                    continue
                # [heads, texts * tokens, columns].
                products = torch.bmm(rows.transpose(0, 1).flatten(1, 2), table[near].permute(1, 2, 0))
                parts.append(
                    products.as_strided(
                        (texts, self._heads, tokens, tokens),
                        (tokens * columns, texts * tokens * columns, *strides),
                        tokens - 1,
                    )
                )
            return parts[0] + parts[1] if len(parts) == 2 else parts[0].contiguous()

        return make

    def _find_tables(self) -> tuple[Tensor | None, Tensor | None]:
        """p and r of equation 4 by index, divided by the scale: [2 * span, heads, d] each; None if not used."""
        if self._tables is None:
            content, positions = self._project_embeddings(self._embed())
            self._tables = (
                None if content is None else self._split(content) * self._scale,
                None if positions is None else self._split(positions) * self._scale,
            )
        return self._tables

    def _project_embeddings(self, embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """For queries and for keys: [2 * span, heads * d] each."""
        module = self._module
        embeddings = embeddings[: 2 * module.pos_ebd_size]
        names = ("key_proj", "query_proj") if module.share_att_key else ("pos_key_proj", "pos_query_proj")
        layers = [getattr(module, name, None) for name in names]
        kinds = zip(("c2p", "p2c"), layers, strict=True)
        content, positions = (
            layer(embeddings) if layer and kind in module.pos_att_type else None for kind, layer in kinds
        )
        return content, positions

    def _index(self, longest: int) -> Tensor:
        """Where the distances 1 - longest ... longest - 1 are in the tables: int64 [2 * longest - 1]."""
        most = (len(self._indices) + 1) // 2
        if most < longest:
            most = max(longest, _LEAST_TOKENS)
            distances = torch.arange(1 - most, most)
            indices = (self._bucket(distances) + self._span).clamp(0, 2 * self._span - 1)
            self._indices = indices.to(next(self._module.parameters()).device)
        return self._indices[most - longest : most + longest - 1]

    @property
    def _span(self) -> int:
        return int(self._module.pos_ebd_size)

    def _bucket(self, distances: Tensor) -> Tensor:
        """Distances that share an embedding: int64 [distances]."""
        module = self._module
        if module.position_buckets <= 0 or module.max_relative_positions <= 0:
            return distances
        code = sys.modules[type(module).__module__]
        buckets: Tensor = code.make_log_bucket_position(
            distances, module.position_buckets, module.max_relative_positions
        )
        return buckets.long()


class _FirstDisentangledAttention(_DisentangledAttention):
    """That of the first DeBERTa: one layer for queries, keys and values, and no buckets."""

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        module = self._module
        query, key, value = self._split(module.in_proj(hidden_states)).chunk(3, dim=-1)
        query, value = query + self._split(module.q_bias), value + self._split(module.v_bias)
        return tuple(each.transpose(1, 2) for each in (query, key, value))

    def _project_embeddings(self, embeddings: Tensor) -> tuple[Tensor | None, Tensor | None]:
        module = self._module
        content = module.pos_proj(embeddings) if "c2p" in module.pos_att_type else None
        positions = module.pos_q_proj(embeddings) if "p2c" in module.pos_att_type else None
        return content, positions

    @property
    def _span(self) -> int:
        return int(self._module.max_relative_positions)

    def _bucket(self, distances: Tensor) -> Tensor:
        return distances


class _MPNetAttention:
    """The attention of a layer of MPNet: the scores have a bias of the distance."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, hidden_states: Tensor, _: Any = None, position_bias: Tensor | None = None, **__: Any) -> Any:
        """[1, T, hidden] to a tuple of [1, T, hidden]."""
        assert position_bias is not None
        layout: Layout = current.layout
        _count_call(layout)
        module = self._module
        query, key, value = (
            layer(hidden_states).view(*hidden_states.shape[:-1], module.num_attention_heads, -1).transpose(1, 2)
            for layer in (module.q, module.k, module.v)
        )
        attended = attend_with_bias(query, key, value, layout, None, take_bias(position_bias))
        return (module.o(attended.flatten(2)),)


def _count_call(layout: Layout) -> None:
    if layout.calls is not None:
        layout.calls.count += 1
        layout.calls.attends_to_all = False


def _find_in_deberta(encoder: Any) -> Iterator[_Replacement]:
    is_first = type(encoder).__name__ == "DebertaEncoder"
    attention = _FirstDisentangledAttention if is_first else _DisentangledAttention
    for layer in encoder.layer:
        yield layer.attention.self, "forward", attention(layer.attention.self, encoder)
    # Of all pairs of rows, which packed attention does not read.
    yield encoder, "get_attention_mask", lambda attention_mask: attention_mask
    yield encoder, "get_rel_pos", lambda *_, **__: None
    yield encoder, "get_rel_embedding", lambda: None


def _find_in_model(model: Any) -> Iterator[_Replacement]:
    # It reads token ids of every batch that has no mask: the CPU would wait for the GPU.
    yield model, "warn_if_padding_and_no_attention_mask", lambda *_: None


def _find_in_mpnet(encoder: Any) -> Iterator[_Replacement]:
    for layer in encoder.layer:
        yield layer.attention.attn, "forward", _MPNetAttention(layer.attention.attn)
    compute = partial(type(encoder).compute_position_bias, encoder)

    def compute_longest(rows: Tensor) -> Any:
        # It reads the number of rows only.
        return compute(rows.new_empty((1, find_longest(current.layout, rows))))

    yield encoder, "compute_position_bias", compute_longest


def _find_in_t5(attention: Any) -> Iterator[_Replacement]:
    compute = partial(type(attention).compute_bias, attention)

    def compute_longest(*_: Any, **__: Any) -> Any:
        weight = attention.relative_attention_bias.weight
        longest = find_longest(current.layout, weight)
        return compute(longest, longest, device=weight.device)

    if attention.has_relative_attention_bias:
        yield attention, "compute_bias", compute_longest


# By the name of a module's class.
_MODULES: dict[str, Callable[[Any], Iterator[_Replacement]]] = {
    "DebertaEncoder": _find_in_deberta,
    "DebertaModel": _find_in_model,
    "DebertaV2Encoder": _find_in_deberta,
    "DebertaV2Model": _find_in_model,
    "MPNetEncoder": _find_in_mpnet,
    "MPNetModel": _find_in_model,
    "MT5Attention": _find_in_t5,
    "T5Attention": _find_in_t5,
}
