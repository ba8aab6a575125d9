"""The logits processors that `generate()` makes of a model's generation_config.json."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    SuppressTokensAtBeginLogitsProcessor,
)

from runners.core.errors import ModelLoadError, brief
from runners.generator.sampler import Processor

# These change nothing between the first two tokens and the last one.
_AT_THE_ENDS = (
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
)
# Settings that filter tokens when sampling and that only `transformers` implements, with their neutral values.
_WARPERS: Mapping[str, tuple[float | None, ...]] = {
    "typical_p": (None, 1.0),
    "epsilon_cutoff": (None, 0.0),
    "eta_cutoff": (None, 0.0),
    "top_h": (None,),
}
# Settings of `generate()` that this server does not implement, with their neutral values.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "penalty_alpha": (None, 0.0),
    "dola_layers": (None,),
    "num_beam_groups": (None, 1),
    "diversity_penalty": (None, 0.0),
    "constraints": (None,),
    "force_words_ids": (None,),
    "guidance_scale": (None, 1, 1.0),
    "max_time": (None,),
    "num_return_sequences": (None, 1),
    "token_healing": (None, False),
}


class ModelProcessors:
    """Makes the processors of requests from a model's generation_config.json.

    Attributes:
        filters_when_sampling: whether the file sets filters of tokens that apply to sampling only.
        has_any: whether the file sets processors that apply without sampling too.
    """

    def __init__(self, model: PreTrainedModel, eos: Collection[int]) -> None:
        """
        Args:
            eos: the tokens that end an output.

        Raises:
            ModelLoadError: no processors can be made of generation_config.json.
        """
        self._model = model
        self._template: Any = copy.deepcopy(model.generation_config)
        self._template.guidance_scale = None
        self._template._eos_token_tensor = torch.tensor(sorted(eos), device=model.device) if eos else None
        self.filters_when_sampling = any(
            getattr(self._template, name) not in neutral for name, neutral in _WARPERS.items()
        )
        try:
            listed = self._list([0], 1, 1, {"do_sample": False, "repetition_penalty": None})
            vocabulary = model.config.get_text_config(decoder=True).vocab_size
            logits: Any = torch.zeros(1, vocabulary, device=model.device)
            listed(logits[:, :1].long(), logits)
        except Exception as error:
            raise ModelLoadError(f"generation_config.json cannot be used: {brief(error)}") from error
        self.has_any = bool(listed)

    def make(
        self, prompt: Sequence[int], start: Sequence[int], max_tokens: int, overrides: Mapping[str, Any]
    ) -> Processor:
        """
        Args:
            start: the tokens before the output: the prompt of a causal model, or an encoder-decoder's start token.
            overrides: settings instead of those of generation_config.json.
        """

        @cache
        def prepare() -> tuple[LogitsProcessorList, Tensor, bool]:
            """Called in the model's thread: making tensors on a GPU waits for the current step."""
            listed = self._list(prompt, len(start), max_tokens, overrides)
            before = torch.tensor(start, device=self._model.device)
            return listed, before, all(isinstance(each, _AT_THE_ENDS) for each in listed)

        def process(logits: Tensor, output: Sequence[int]) -> Tensor:
            listed, before, mostly_idle = prepare()
            if mostly_idle and 1 < len(output) < max_tokens - 1:
                return logits
            history = torch.cat([before, torch.tensor(output, dtype=torch.long, device=before.device)])
            scores: Tensor = listed(history[None], logits[None])  # type: ignore[arg-type]
            return scores[0]

        return process

    def _list(
        self, prompt: Sequence[int], start: int, max_tokens: int, overrides: Mapping[str, Any]
    ) -> LogitsProcessorList:
        config = copy.copy(self._template)
        for name, value in overrides.items():
            setattr(config, name, value)
        # `generate` sets these before it makes the processors.
        if config.min_new_tokens is not None:
            config.min_length = start + config.min_new_tokens
        config.max_length = start + max_tokens
        device: Any = self._model.device
        model: Any = self._model
        listed: LogitsProcessorList = model._get_logits_processor(
            config,
            input_ids_seq_length=start,
            encoder_input_ids=torch.tensor([list(prompt)], device=device),
            device=device,
        )
        return listed


def find_without_effect(config: Any) -> list[str]:
    """The settings of a generation_config.json that this server does not implement."""
    return [name for name, neutral in _WITHOUT_EFFECT.items() if getattr(config, name, None) not in neutral]
