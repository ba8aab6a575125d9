"""Shortens the attention windows and rotary limits of a model, so that the short texts of a probe cross them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from runners.generator.decoder import Decoder
from runners.modeling.attention import read_attention_windows

# Names of attention windows that can be changed, and of the capacity of an expert, in configs and modules.
_WINDOWS = ("sliding_window", "attention_chunk_size", "local_attention", "window_size", "expert_capacity")


def has_limits(decoder: Decoder) -> bool:
    """Whether the model has limits that a short text does not cross."""
    return decoder.rope.limit is not None or bool(read_windows(decoder))


def read_windows(decoder: Decoder) -> list[int]:
    """The sizes of attention windows and expert capacities in tokens, without unlimited ones."""
    found: list[Any] = []
    for config in _configs(decoder):
        found += [_read(config, "expert_capacity"), *read_attention_windows(config)]
    return sorted({number for number in found if isinstance(number, int) and number > 0})


def selects_columns(decoder: Decoder) -> bool:
    """Whether attention uses only the columns with the best scores, as DeepSeek's sparse attention does."""
    return any(_read(config, "index_topk") for config in _configs(decoder))


@contextlib.contextmanager
def lowered(decoder: Decoder, limit: int) -> Iterator[None]:
    """Shorten windows to at most `limit` tokens, and make rotary positions change at `limit`, within the context."""
    stored: list[tuple[Any, str, int]] = []
    restarts_above = decoder.restarts_above
    holders: list[Any] = [*_configs(decoder), *decoder.model.modules()]
    with decoder.rope.lowered(limit):
        try:
            for holder in holders:
                for name in _WINDOWS:
                    value = _read(holder, name)
                    if isinstance(value, int) and not isinstance(value, bool) and value > limit:
                        stored.append((holder, name, value))
                        setattr(holder, name, limit)
            if restarts_above is not None:
                decoder.restarts_above = limit
            yield
        finally:
            decoder.restarts_above = restarts_above
            for holder, name, value in reversed(stored):
                setattr(holder, name, value)


def _read(holder: Any, name: str) -> Any:
    """The value of an attribute; None if there is none, or if layers have different values."""
    try:
        return getattr(holder, name, None)
    except ValueError:
        return None


def _configs(decoder: Decoder) -> list[PreTrainedConfig]:
    """The configs of the model and its parts, each once."""
    parts = [getattr(module, "config", None) for module in decoder.model.modules()]
    by_id = {id(config): config for config in parts if isinstance(config, PreTrainedConfig)}
    return list(by_id.values())
