"""What a request may ask of a model, and what the model does where the request says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.errors import InputError
from runners.generation import Sampling
from runners.generator.sampling import Settings
from runners.loading import limit_length

# Where neither the request nor the model says how much an encoder-decoder is to write.
_DEFAULT_OUTPUT = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in tokens.

    Attributes:
        prompt: of a causal model's prompt and output together, of an encoder-decoder's prompt.
        output: most that an encoder-decoder can write; None for no limit, and for causal models.
        default_output: what an encoder-decoder writes at most where a request says nothing; None for causal models.
    """

    prompt: int
    output: int | None = None
    default_output: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> Limits:
        """Those of a model, lowered to what the operator asked for."""
        prompt = limit_length(model, tokenizer, asked)
        if not model.config.is_encoder_decoder:
            return cls(prompt)
        # Of the kinds of config only those with a table of decoder positions have these.
        keys = ("max_decoder_position_embeddings", "max_position_embeddings")
        known = [value for key in keys if (value := getattr(model.config, key, None)) is not None]
        output = min([*known[:1], asked] if asked is not None else known[:1], default=None)
        return cls(prompt, output, output or _configured_output(model) or _DEFAULT_OUTPUT)

    def room(self, prompt: int, max_tokens: int | None) -> int:
        """How many tokens a prompt may be continued with.

        Raises:
            InputError: there is less room than was asked for.
        """
        context = f"This model's maximum context length is {self.prompt} tokens, but"
        if prompt == 0:
            raise InputError("the prompt is empty: it has no tokens")
        if max_tokens is not None and max_tokens < 0:
            raise InputError(f"max_tokens must be at least 0, not {max_tokens}")
        if prompt > self.prompt:
            raise InputError(f"{context} the prompt has {prompt} tokens")
        if self.default_output is not None:
            if self.output is not None and max_tokens is not None and max_tokens > self.output:
                raise InputError(
                    f"This model's maximum output length is {self.output} tokens, but {max_tokens} of max_tokens were "
                    "asked for"
                )
            return max_tokens if max_tokens is not None else self.default_output
        if prompt == self.prompt and max_tokens != 0:
            raise InputError(f"{context} the prompt has {prompt} tokens, which leaves no room for an answer")
        if max_tokens is not None and prompt + max_tokens > self.prompt:
            raise InputError(
                f"{context} {prompt} of the prompt and {max_tokens} of max_tokens were asked for: "
                f"{prompt + max_tokens} tokens"
            )
        return max_tokens if max_tokens is not None else self.prompt - prompt


@dataclass(frozen=True, slots=True)
class Defaults:
    """What generation_config.json (or config.json) says.

    Attributes:
        eos: the tokens that end an output.
        decoder_start: what an encoder-decoder's output begins with, unseen; None for causal models.
        forced_first: the first token of every output.
        settings: of sampling, where set explicitly.
    """

    vocabulary: int
    eos: frozenset[int]
    decoder_start: int | None
    forced_first: int | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Defaults:
        config: Any = model.generation_config
        eos = config.eos_token_id
        ends = [*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id]
        start = None
        if model.config.is_encoder_decoder:
            start = config.decoder_start_token_id if config.decoder_start_token_id is not None else config.bos_token_id
        names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
        return cls(
            vocabulary=model.config.get_text_config(decoder=True).vocab_size,
            eos=frozenset(end for end in ends if end is not None),
            decoder_start=start,
            forced_first=config.forced_bos_token_id if model.config.is_encoder_decoder else None,
            settings={name: value for name in names if (value := getattr(config, name, None)) is not None},
        )

    def check(self, prompt: Sequence[int]) -> None:
        """Refuse token ids that are none: they would fail the batch that they run in.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        if prompt and (outside := max(prompt)) >= self.vocabulary:
            raise InputError(f"the prompt has token {outside}, but the vocabulary ends at {self.vocabulary - 1}")

    def resolve(self, sampling: Sampling) -> Settings:
        """Put the defaults in.

        Raises:
            InputError: a logit_bias is outside of the vocabulary.
        """
        outside = [token for token in sampling.logit_bias if not 0 <= token < self.vocabulary]
        if outside:
            raise InputError(f"logit_bias has token {outside[0]}, but the vocabulary ends at {self.vocabulary - 1}")
        asked = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        asked["repetition_penalty"] = sampling.repetition_penalty
        settings = self.settings | {name: value for name, value in asked.items() if value is not None}
        if settings.get("top_k", 0) <= 0:
            settings["top_k"] = None
        return Settings(
            **settings,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            logprobs=sampling.logprobs,
        )


def _configured_output(model: PreTrainedModel) -> int | None:
    """What a model's generation_config says, if it says so itself; `max_length` counts the decoder's start."""
    config: Any = model.generation_config
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    return None if config.max_length is None else max(1, config.max_length - 1)
