"""`generate` of `transformers` in steps: one sequence with the model's own kind of cache and its own inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils.generic import ModelOutput

from runners.core.errors import InputError

# Only a static cache reserves room for it, and there is none.
_MOST_TOKENS = 2**20


class StockSequence:
    """A sequence that `generate` has prepared, and that is continued as `generate` does it."""

    def __init__(self, model: Any, prompt: Tensor, decoder_start: int | None, keep_logits: bool = False) -> None:
        """
        Args:
            prompt: token ids, [rows, tokens]: several where they are beams of one sequence.
            decoder_start: the token that an encoder-decoder begins with; None for a causal model.
            keep_logits: of all tokens of the prompt, not of the last one alone.
        """
        self._model = model
        self._ids = prompt
        self._inputs: dict[str, Any] = {}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=_MOST_TOKENS,
            decoder_start_token_id=decoder_start,
        )  # fmt: skip
        self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, custom_generate=self._take
        )
        if keep_logits:
            self._inputs.pop("logits_to_keep", None)

    def start(self) -> Tensor:
        """Compute the prompt; the logits after its last token at least, or after all; [rows, tokens, vocabulary]."""
        return self._run(is_first_iteration=True)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; the logits of the next, [rows, vocabulary]."""
        self._ids = torch.cat([self._ids, self._ids.new_tensor(tokens)[:, None]], 1)
        return self._run(next_sequence_length=1 if self._inputs["use_cache"] else None)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, as beams do; one that is named twice becomes two.

        Raises:
            InputError: what the model remembers of a sequence cannot be copied; `generate` says the same.
        """
        count = len(self._ids)
        self._ids = self._ids[rows]
        for name, value in self._inputs.items():
            self._inputs[name] = self._reorder(value, rows) if name in ALL_CACHE_NAMES else _select(value, rows, count)

    def _reorder(self, cache: Any, rows: Tensor) -> Any:
        if hasattr(self._model, "_reorder_cache"):
            return self._model._reorder_cache(cache, rows)
        if not hasattr(cache, "reorder_cache"):
            raise InputError(f"{type(self._model).__name__} cannot search with beams")
        cache.reorder_cache(rows)
        return cache

    def _take(self, _: Any, ids: Tensor, generation_config: Any, **given: Any) -> None:
        """What `generate` calls to decode: it ends there, with all that it has prepared."""
        self._ids = ids
        self._inputs = {name: given[name] for name in given if name not in ("logits_processor", "stopping_criteria")}

    def _run(self, **options: Any) -> Tensor:
        inputs = self._model.prepare_inputs_for_generation(self._ids, **options, **self._inputs)
        output = self._model(**inputs, return_dict=True)
        self._inputs = self._model._update_model_kwargs_for_generation(
            output, self._inputs, is_encoder_decoder=self._model.config.is_encoder_decoder
        )
        logits: Tensor = output.logits
        return logits


def _select(value: Any, rows: Tensor, count: int) -> Any:
    """The rows of what has so many of them."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _select(part, rows, count) for name, part in value.items()})
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) == count:
        return value[rows]
    return value
