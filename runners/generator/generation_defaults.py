"""A model's defaults for requests: its generation_config.json, or the same settings in its config.json."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from runners.core.errors import InputError, ModelLoadError
from runners.core.generation import BeamSearch, Sampling
from runners.generator.beams import BeamRules
from runners.generator.languages import Languages
from runners.generator.length_limits import configured_output
from runners.generator.logits_processors import ModelProcessors, find_without_effect
from runners.generator.sampler import Processor, Settings

logger = logging.getLogger(__name__)

MAX_BEAMS = 32
# A length to a larger power would overflow.
_MAX_LENGTH_PENALTY = 10.0
_SAMPLING = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True)
class Defaults:
    """
    Attributes:
        vocabulary: number of the model's logits.
        eos: the tokens that end an output.
        decoder_start: the token before an encoder-decoder's output; None for causal models.
        max_tokens: most tokens of an output; None if the model sets no limit.
        stop: strings that end an output.
        sampling: temperature, top_k, top_p and min_p, if set explicitly.
        samples: whether tokens are sampled if the request does not say.
        beams: the model's beam search; None if it has none.
    """

    vocabulary: int
    eos: frozenset[int]
    decoder_start: int | None
    max_tokens: int | None
    stop: tuple[str, ...]
    sampling: dict[str, Any]
    repetition_penalty: float
    samples: bool
    beams: BeamRules | None
    languages: Languages
    processors: ModelProcessors

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Defaults:
        """
        Raises:
            ModelLoadError: generation_config.json has a value that is not allowed.
        """
        config: Any = model.generation_config
        _check_numbers(config)
        eos = config.eos_token_id
        ends = [*_listed(eos), tokenizer.eos_token_id]
        known_ends = frozenset(end for end in ends if end is not None)
        start = None
        if model.config.is_encoder_decoder:
            start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
        _warn_of_ignored(config)
        return cls(
            vocabulary=model.config.get_text_config(decoder=True).vocab_size,
            eos=known_ends,
            decoder_start=start,
            max_tokens=config.max_new_tokens if start is None else configured_output(model),
            stop=tuple(stop for stop in _listed(config.stop_strings) if stop),
            sampling={name: value for name in _SAMPLING if (value := getattr(config, name, None)) is not None},
            repetition_penalty=config.repetition_penalty or 1.0,
            # Causal models sample with a temperature of 1 by default, as in vLLM and OpenAI's API.
            samples=config.do_sample is True or start is None,
            beams=_find_beams(config),
            languages=Languages.of(tokenizer),
            processors=ModelProcessors(model, known_ends),
        )

    def check(self, prompt: Sequence[int]) -> None:
        """Check the token ids of a prompt: an invalid one would fail its batch.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        if not prompt:
            return
        if (outside := max(prompt)) >= self.vocabulary or (outside := min(prompt)) < 0:
            raise InputError(f"the prompt has token {outside}, but the vocabulary ends at {self.vocabulary - 1}")

    def resolve(self, sampling: Sampling) -> Settings:
        """The sampler's settings of a request, with the model's defaults.

        Raises:
            InputError: a logit_bias is outside of the vocabulary, or as `find_beams`.
        """
        outside = [token for token in sampling.logit_bias if not 0 <= token < self.vocabulary]
        if outside:
            raise InputError(
                f"logit_bias has token {outside[0]}, but the vocabulary ends at {self.vocabulary - 1}", "logit_bias"
            )
        requested = {name: value for name in _SAMPLING if (value := getattr(sampling, name)) is not None}
        values = self.sampling | requested
        greedy = sampling.temperature is None and not self.samples and not _asks_to_sample(sampling)
        if greedy or self.find_beams(sampling) is not None:
            values["temperature"] = 0.0
        if values.get("top_k", 0) <= 0:
            values["top_k"] = None
        repetition = sampling.repetition_penalty
        return Settings(
            **values,
            repetition_penalty=self.repetition_penalty if repetition is None else repetition,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            logprobs=sampling.logprobs,
        )

    def limit(self, sampling: Sampling) -> int | None:
        """Most tokens of an output if the request sets no limit; None for as many as there is room for."""
        if self.decoder_start is not None and self.max_tokens is not None:
            return self.max_tokens
        # A route's default wins over the model's, as in vLLM.
        return self.max_tokens if sampling.default_tokens is None else sampling.default_tokens

    def process(
        self, settings: Settings, sampling: Sampling, prompt: Sequence[int], max_tokens: int
    ) -> tuple[Settings, tuple[Processor, ...]]:
        """The model's logits processors for a request.

        Args:
            max_tokens: most tokens of the output.

        Returns:
            The settings without those that the processors apply, and the processors.

        Raises:
            InputError: the model has no such language.
        """
        overrides: dict[str, Any] = {"do_sample": False, "repetition_penalty": settings.repetition_penalty}
        moved: dict[str, Any] = {"repetition_penalty": 1.0}
        if (target := self._find_target(sampling)) is not None:
            overrides["forced_bos_token_id"] = target
        if sampling.min_tokens or sampling.ignore_eos:
            overrides |= {"min_length": None, "min_new_tokens": None}
        warps = (self.processors.filters_when_sampling or sampling.asks_typical) and not settings.greedy
        if sampling.typical_p is not None:
            overrides["typical_p"] = sampling.typical_p
        if warps:
            # The processors apply all filters of tokens, in order: some come after those that the sampler knows.
            overrides |= {"do_sample": True} | {name: getattr(settings, name) for name in _SAMPLING}
            moved |= {"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0}
        if not (self.processors.has_any or warps or target is not None):
            return settings, ()
        start = prompt if self.decoder_start is None else [self.decoder_start]
        return replace(settings, **moved), (self.processors.make(prompt, start, max_tokens, overrides),)

    def find_beams(self, sampling: Sampling) -> BeamRules | None:
        """The rules of a request's beam search; None for sampling.

        Raises:
            InputError: the beam search's parameters are not allowed, or contradict other parameters.
        """
        search = sampling.beam_search
        if search is None:
            # The model's own beam search is not used with parameters that it does not support.
            return None if _asks_to_sample(sampling) or sampling.constraint is not None else self.beams
        if sampling.constraint is not None:
            raise InputError("beam search takes no grammar, JSON schema or other constraint: leave one of them out")
        return _check_beams(search)

    def _find_target(self, sampling: Sampling) -> int | None:
        """The first token of an output in the request's target language, or in the model's default one."""
        if sampling.target_language is not None:
            return self.languages.find(sampling.target_language, "tgt_lang").token
        return self.languages.default_target


def reset_generation_config(model: PreTrainedModel) -> None:
    """Replace the model's settings of `generate`, which runs some models, by those of a plain greedy search."""
    config: Any = model.generation_config
    kept = ("bos_token_id", "cache_implementation", "decoder_start_token_id", "eos_token_id", "pad_token_id")
    model.generation_config = GenerationConfig(**{name: getattr(config, name) for name in kept})  # type: ignore[no-untyped-call]


def _check_beams(search: BeamSearch) -> BeamRules:
    if not 1 <= search.choices <= search.width <= MAX_BEAMS:
        raise InputError(f"beam search takes n from 1 to {MAX_BEAMS}, not {search.width}")
    if not (math.isfinite(search.length_penalty) and abs(search.length_penalty) <= _MAX_LENGTH_PENALTY):
        raise InputError(
            f"length_penalty must be from -{_MAX_LENGTH_PENALTY:.0f} to {_MAX_LENGTH_PENALTY:.0f}, not "
            f"{search.length_penalty}"
        )
    return BeamRules(search.width, search.choices, search.length_penalty, as_vllm=True)


def _find_beams(config: Any) -> BeamRules | None:
    """The beam search of a generation_config; None if it has none, or samples."""
    width = config.num_beams or 1
    if width == 1 or width > MAX_BEAMS or config.do_sample:
        return None
    penalty = 1.0 if config.length_penalty is None else config.length_penalty
    return BeamRules(width, 1, penalty, config.early_stopping or False)


def _asks_to_sample(sampling: Sampling) -> bool:
    if sampling.temperature is not None:
        return sampling.temperature > 0
    if sampling.samples is not None:
        return sampling.samples
    return (
        sampling.seed is not None
        or (sampling.top_p is not None and sampling.top_p < 1)
        or (sampling.top_k is not None and sampling.top_k > 0)
        or bool(sampling.min_p)
        or sampling.asks_typical
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_numbers(config: Any) -> None:
    """
    Raises:
        ModelLoadError: a sampling setting is no number, or has a value that is not allowed.
    """
    for name in (*_SAMPLING, "repetition_penalty"):
        value = getattr(config, name, None)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # A `top_k` of -1 allows the whole vocabulary.
        if value is not None and not (is_number and (value >= 0 or name == "top_k")):
            raise ModelLoadError(f"generation_config.json has {name} {value!r}, which must be a number from 0")
    for token in _listed(config.eos_token_id):
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise ModelLoadError(f"generation_config.json has eos_token_id {token!r}, which must be a token id")


def _warn_of_ignored(config: Any) -> None:
    names = find_without_effect(config)
    if (config.num_beams or 1) > 1 and _find_beams(config) is None:
        names.append(f"num_beams (it is {config.num_beams}, with do_sample {config.do_sample})")
    if names:
        logger.warning("of generation_config.json these have no effect here: %s", ", ".join(names))
