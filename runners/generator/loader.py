"""Loads a generator that `transformers` runs: its model, tokenizer, and all that requests are prepared with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from runners.core.arguments import Arguments
from runners.core.device_thread import give_way
from runners.core.errors import InputError
from runners.core.generation import Sampling
from runners.core.generation_metrics import RUNNING, WAITING
from runners.core.machine import count_cores
from runners.core.metrics import TRUNCATED_TEXTS, QueueMetrics
from runners.core.runner import RunnerDetails
from runners.generator.constraints import GrammarMatcher, Grammars
from runners.generator.decoder import Decoder
from runners.generator.generation_defaults import Defaults, reset_generation_config
from runners.generator.length_limits import Limits
from runners.generator.probe import choose_batching, speed_up
from runners.generator.prompts import Prompts, load_template
from runners.generator.row_allocation import MAX_ROWS
from runners.generator.sampler import Settings
from runners.generator.sampling_checks import find_ends, resolve
from runners.generator.scheduler import Scheduler
from runners.generator.sequence_state import Request
from runners.generator.vocabulary import Vocabulary
from runners.modeling.dtypes import name_dtype
from runners.modeling.loading import (
    load_config,
    load_in_fitting_dtype,
    load_model,
    load_tokenizer,
    resolve_batch_tokens,
    silence_transformers,
)
from runners.modeling.memory import check_memory
from runners.modeling.model_files import load_json
from runners.modeling.packed_linear import name_linear_kernels, warm_linears
from runners.modeling.weights import copy_mapped_weights

logger = logging.getLogger(__name__)

# Most logits of a prompt, 1 GiB in float32, for models that compute a prompt as a whole.
_MOST_LOGITS = 2**28


@dataclass(frozen=True, slots=True)
class LoadedGenerator:
    """A loaded model, the parts that prepare its requests, and the scheduler that runs them."""

    vocabulary: Vocabulary
    prompts: Prompts
    grammars: Grammars
    limits: Limits
    defaults: Defaults
    scheduler: Scheduler
    details: RunnerDetails

    def limit_output(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """The most tokens of an output; 0 to compute the prompt only.

        Raises:
            InputError: the prompt is empty or too long, a token id is outside of the vocabulary, or the output is too
                long or too short.
        """
        max_tokens = self.limits.room(len(prompt), sampling.max_tokens)
        self.defaults.check(prompt)
        if sampling.max_tokens is None:
            max_tokens = min(max_tokens, self.defaults.limit(sampling) or max_tokens)
        if sampling.min_tokens > max_tokens:
            raise InputError(f"min_tokens is {sampling.min_tokens}, but max_tokens is {max_tokens}", "min_tokens")
        if sampling.prompt_logprobs is not None:
            self._check_prompt_logprobs(prompt)
        return max_tokens

    def resolve(self, sampling: Sampling) -> Settings:
        """The sampler's settings; tokenizes `bad_words`.

        Raises:
            InputError: a token id is outside of the vocabulary, or parameters contradict each other.
        """
        return resolve(sampling, self.defaults, self.vocabulary.tokenizer)

    def make_request(
        self,
        prompt: Sequence[int],
        sampling: Sampling,
        max_tokens: int,
        settings: Settings,
        matcher: GrammarMatcher | None,
    ) -> Request:
        """
        Args:
            max_tokens: from `limit_output`.
            settings: from `resolve`.
            matcher: the state of the output in its constraint; None without a constraint.

        Raises:
            InputError: the model has no such language, or beam search contradicts other parameters.
        """
        defaults = self.defaults
        settings, processors = defaults.process(settings, sampling, prompt, max_tokens)
        has_encoder = defaults.decoder_start is not None
        return Request(
            prompt=prompt,
            counted=[defaults.decoder_start] if defaults.decoder_start is not None else prompt,
            context=() if has_encoder else prompt,
            settings=settings,
            seed=sampling.seed,
            max_tokens=max_tokens,
            ends=find_ends(sampling, defaults, self.vocabulary.tokenizer.eos_token_id),
            stop=tuple(stop for stop in sampling.stop if stop) or defaults.stop,
            include_stop=sampling.include_stop,
            skip_special_tokens=sampling.skip_special_tokens,
            prompt_logprobs=sampling.prompt_logprobs,
            processors=processors,
            matcher=matcher,
            beams=defaults.find_beams(sampling) if max_tokens else None,
        )

    def _check_prompt_logprobs(self, prompt: Sequence[int]) -> None:
        """
        Raises:
            InputError: the model is an encoder-decoder, or the prompt is too long for its log probabilities.
        """
        if self.defaults.decoder_start is not None:
            raise InputError("an encoder-decoder has no log probabilities of its prompt", "prompt_logprobs")
        if not self.scheduler.computes_in_parts and len(prompt) * self.defaults.vocabulary > _MOST_LOGITS:
            max_tokens = _MOST_LOGITS // self.defaults.vocabulary
            raise InputError(
                f"this model gives log probabilities of prompts of {max_tokens} tokens at most, not {len(prompt)}",
                "prompt_logprobs",
            )


def load_generator(arguments: Arguments, changed: threading.Condition, device: torch.device) -> LoadedGenerator:
    """Load and warm a model; to be called in the device thread that will run it.

    Args:
        changed: of the device thread.
        device: where the model runs.

    Raises:
        ModelLoadError: the model cannot be generated with.
        ArgumentsError: the chat template of the arguments cannot be read.
    """
    silence_transformers()
    torch.set_num_threads(count_cores(arguments.workers))
    return load_in_fitting_dtype(arguments, device, partial(_load_in_dtype, arguments, changed, device))


def _load_in_dtype(
    arguments: Arguments, changed: threading.Condition, device: torch.device, dtype: torch.dtype
) -> LoadedGenerator:
    """As `load_generator`, in one dtype.

    Raises:
        NonFiniteModelError: the model's logits are not finite in it.
    """
    template_argument = arguments.engine.get("chat_template")
    template = None if template_argument is None else load_template(template_argument)
    model, tokenizer = _load_model(arguments, device, dtype)
    give_way()
    defaults = Defaults.of(model, tokenizer)
    limits = Limits.of(model, tokenizer, arguments.max_length)
    reset_generation_config(model)
    logger.info("%s", speed_up(model))
    copy_mapped_weights(model)
    give_way()
    decoder = Decoder(model, defaults.decoder_start)
    logger.info("%s", choose_batching(decoder))
    details = RunnerDetails(
        "transformers", name_dtype(model.dtype), str(device), decoder.batching, name_linear_kernels(model)
    )
    warm_linears(model, range(1, MAX_ROWS + 1))
    max_batch_tokens = resolve_batch_tokens(arguments, device)
    vocabulary = Vocabulary(tokenizer, defaults.vocabulary)
    metrics = QueueMetrics(arguments.model_name, (WAITING,), (RUNNING,))
    return LoadedGenerator(
        vocabulary,
        Prompts(
            vocabulary,
            defaults.languages,
            limits.prompt,
            # A token of a causal model's context is kept free for the output, as in vLLM.
            limits.prompt - (0 if model.config.is_encoder_decoder else 1),
            not arguments.disable_special_tokens,
            template,
            arguments.max_text_characters,
            lambda: TRUNCATED_TEXTS.add((arguments.model_name,)),
        ),
        Grammars(vocabulary, defaults.vocabulary, defaults.eos),
        limits,
        defaults,
        Scheduler(decoder, defaults.vocabulary, max_batch_tokens, metrics, changed),
        details,
    )


def _load_model(
    arguments: Arguments, device: torch.device, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    config = load_config(arguments)
    give_way()
    # `transformers` would silently use its own defaults for a file that is no JSON.
    load_json(arguments, "generation_config.json")
    tokenizer = load_tokenizer(arguments, needs_fast=False)
    if not config.is_encoder_decoder:
        # The output continues the end of a prompt, so that is kept; vLLM does the same.
        tokenizer.truncation_side = "left"
    check_memory(arguments, config, device, dtype)
    give_way()
    auto_class: type[Any] = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return load_model(arguments, auto_class, device, dtype, unused_prefixes=()), tokenizer
