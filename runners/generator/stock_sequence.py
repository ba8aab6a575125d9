"""Runs one sequence as `generate` of `transformers` does, step by step, with the model's own cache and inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.utils.generic import ModelOutput

from runners.core.errors import InputError

# `generate` reserves memory for these tokens in a static cache only, which is not used.
_MAX_TOKENS = 2**20


class StockSequence:
    """A sequence that `generate` prepares, and that is continued in the same way."""

    def __init__(self, model: Any, prompt: Tensor, decoder_start: int | None, keep_logits: bool = False) -> None:
        """
        Args:
            prompt: token ids, [rows, tokens]; several rows are beams of one sequence.
            decoder_start: the token that an encoder-decoder begins with; None for a causal model.
            keep_logits: keep the logits of all tokens of the prompt instead of the last one.
        """
        self._model = model
        self._ids = prompt
        self._inputs: dict[str, Any] = {}
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=_MAX_TOKENS,
            decoder_start_token_id=decoder_start,
        )  # fmt: skip
        self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), generation_config=config, custom_generate=self._keep_inputs
        )
        if keep_logits:
            self._inputs.pop("logits_to_keep", None)

    def start(self) -> Tensor:
        """Compute the prompt; returns the logits of at least its last token, or of all; [rows, tokens, vocabulary]."""
        return self._run(is_first_iteration=True)

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Append a token to every row; returns the logits of the next tokens, [rows, vocabulary]."""
        self._ids = torch.cat([self._ids, self._ids.new_tensor(tokens)[:, None]], 1)
        return self._run(next_sequence_length=1 if self._inputs["use_cache"] else None)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows, for beam search; a row that is given twice becomes two rows.

        Raises:
            InputError: the model's state cannot be copied; `generate` raises an error too.
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

    def _keep_inputs(self, _: Any, ids: Tensor, generation_config: Any, **inputs: Any) -> None:
        """Called by `generate` instead of its decode loop, with the inputs that it has prepared."""
        self._ids = ids
        self._inputs = {name: inputs[name] for name in inputs if name not in ("logits_processor", "stopping_criteria")}

    def _run(self, **options: Any) -> Tensor:
        inputs = self._model.prepare_inputs_for_generation(self._ids, **options, **self._inputs)
        output = self._model(**inputs, return_dict=True)
        self._inputs = self._model._update_model_kwargs_for_generation(
            output, self._inputs, is_encoder_decoder=self._model.config.is_encoder_decoder
        )
        logits: Tensor = output.logits
        return logits


def _select(value: Any, rows: Tensor, count: int) -> Any:
    """The given rows of a tensor with `count` rows, or of each such tensor of an output; other values as they are."""
    if isinstance(value, ModelOutput):
        return type(value)(**{name: _select(part, rows, count) for name, part in value.items()})
    if isinstance(value, Tensor) and value.dim() > 1 and len(value) == count:
        return value[rows]
    return value
