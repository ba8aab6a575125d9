"""Limits of the lengths of prompts and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.core.errors import InputError
from runners.modeling.max_length import limit_sequence

# The output limit of an encoder-decoder where neither the request nor the model sets one.
_DEFAULT_OUTPUT = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in tokens.

    Attributes:
        prompt: of a causal model's prompt and output together, or of an encoder-decoder's prompt.
        output: of an encoder-decoder's output; None for no limit, and for causal models.
        default_output: of an encoder-decoder's output where a request sets no limit; None for causal models.
    """

    prompt: int
    output: int | None = None
    default_output: int | None = None

    @classmethod
    def of(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> Limits:
        """The limits of a model.

        Args:
            max_length: the operator's limit, which must not exceed the model's number of positions.
        """
        prompt = limit_sequence(model, tokenizer, max_length)
        if not model.config.is_encoder_decoder:
            return cls(prompt)
        # Only configs of models with a table of decoder positions have these attributes.
        keys = ("max_decoder_position_embeddings", "max_position_embeddings")
        # An encoder-decoder of two models has a separate config of the decoder.
        decoder: Any = getattr(model.config, "decoder", None) or model.config
        lengths = [value for key in keys if (value := getattr(decoder, key, None)) is not None]
        output = min([*lengths[:1], max_length] if max_length is not None else lengths[:1], default=None)
        default = configured_output(model) or output or _DEFAULT_OUTPUT
        return cls(prompt, output, default if output is None else min(default, output))

    def room(self, prompt: int, max_tokens: int | None) -> int:
        """The most tokens of an output.

        Args:
            prompt: number of tokens of the prompt.
            max_tokens: the request's limit.

        Raises:
            InputError: the prompt is empty or too long, or there is no room for `max_tokens`.
        """
        context = f"This model's maximum context length is {self.prompt} tokens, but"
        if prompt == 0:
            raise InputError("the prompt is empty: it has no tokens")
        if max_tokens is not None and max_tokens < 0:
            raise InputError(f"max_tokens must be at least 0, not {max_tokens}", "max_tokens")
        if prompt > self.prompt:
            raise InputError(f"{context} the prompt has {prompt} tokens")
        if self.default_output is not None:
            if self.output is not None and max_tokens is not None and max_tokens > self.output:
                raise InputError(
                    f"This model's maximum output length is {self.output} tokens, but {max_tokens} of max_tokens were "
                    "asked for",
                    "max_tokens",
                )
            return max_tokens if max_tokens is not None else self.default_output
        if prompt == self.prompt and max_tokens != 0:
            raise InputError(f"{context} the prompt has {prompt} tokens, which leaves no room for an answer")
        if max_tokens is not None and prompt + max_tokens > self.prompt:
            raise InputError(
                f"{context} {prompt} of the prompt and {max_tokens} of max_tokens were asked for: "
                f"{prompt + max_tokens} tokens",
                "max_tokens",
            )
        return max_tokens if max_tokens is not None else self.prompt - prompt


def configured_output(model: PreTrainedModel) -> int | None:
    """The output limit of an encoder-decoder's generation_config; its `max_length` includes the start token."""
    config: Any = model.generation_config
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    return None if config.max_length is None else max(1, config.max_length - 1)
