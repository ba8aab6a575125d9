"""Attention windows in a model's config, and the sparse attention of BigBird."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def read_attention_windows(config: PretrainedConfig) -> Iterator[int]:
    """The sizes of the attention windows in a config, in tokens; 0 for full attention."""
    # A heterogeneous config has no value for all layers.
    for each in config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]:
        for name in ("sliding_window", "local_attention", "attention_window"):
            value = getattr(each, name, None) or 0
            yield from value if isinstance(value, list) else [value]
    if getattr(config, "attention_type", None) == "block_sparse":
        yield (5 + 2 * config.num_random_blocks) * config.block_size


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
