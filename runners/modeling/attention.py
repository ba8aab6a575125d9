"""Attention windows and chunks in a model's config, and the sparse attention of BigBird."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

# Names of attention windows in configs, in tokens.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "local_attention",
    "attention_window",
    "attention_window_size",
    "attention_chunk_size",
    "window_size",
    "local_radius",
    "local_attn_chunk_length",
    "lsh_attn_chunk_length",
)
# Names of other numbers of tokens above which a model computes otherwise: recurrent layers go from chunk to chunk, and
# sparse attention begins to leave tokens out.
_CHUNKS = (
    "block_size",
    "chunk_size",
    "conv_window",
    "global_block_size",
    "index_block_size",
    "index_topk",
    "keep_window_size",
    "local_transformer_stride",
    "mamba_chunk_size",
)


def read_attention_windows(config: PretrainedConfig) -> Iterator[int]:
    """The sizes of the attention windows in a config, in tokens; 0 for full attention."""
    yield from _read(config, _WINDOWS)
    if getattr(config, "attention_type", None) == "block_sparse":
        yield (5 + 2 * config.num_random_blocks) * config.block_size


def read_chunks(config: PretrainedConfig) -> Iterator[int]:
    """The other numbers of tokens in a config above which a model computes otherwise; 0 for none."""
    # BigBird's blocks count only in its sparse attention, as a part of its window.
    if getattr(config, "attention_type", None) not in ("block_sparse", "original_full"):
        yield from _read(config, _CHUNKS)


def _read(config: PretrainedConfig, names: Iterable[str]) -> Iterator[int]:
    # A heterogeneous config has no value for all layers.
    for each in config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]:
        for name in names:
            value = getattr(each, name, None) or 0
            yield from value if isinstance(value, (list, tuple)) else [value]


class SparseAttention:
    """Restores the sparse attention of BigBird and BigBird-Pegasus.

    `transformers` switches such a model to full attention when a batch is short, and leaves it so for all later
    batches. This class switches it back before a batch that is longer than every batch that has switched it.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        modules = _find_outermost(model, "set_attention_type")
        # The module's own attribute may have been switched already; its config has not.
        self._configured = {module: module.config.attention_type for module in modules}
        self._longest_switched = 0

    def restore(self, tokens: int) -> None:
        """Call this before a batch.

        Args:
            tokens: length of the batch's rows.
        """
        if tokens > self._longest_switched:
            for module, attention_type in self._configured.items():
                module.set_attention_type(attention_type)

    def observe(self, tokens: int) -> None:
        """Call this after a batch: remember its length if it has switched the attention."""
        if any(module.attention_type != configured for module, configured in self._configured.items()):
            self._longest_switched = max(self._longest_switched, tokens)


def _find_outermost(module: nn.Module, attribute: str) -> Iterable[Any]:
    """The modules with an attribute that are not inside another such module."""
    if hasattr(module, attribute):
        yield module
        return
    for child in module.children():
        yield from _find_outermost(child, attribute)
