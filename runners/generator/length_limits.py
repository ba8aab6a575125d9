"""How long the prompts and outputs of a model may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.core.errors import InputError
from runners.modeling.loading import limit_sequence

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
        """Those of a model, or what the operator asked for, as far as there are positions."""
        prompt = limit_sequence(model, tokenizer, asked)
        if not model.config.is_encoder_decoder:
            return cls(prompt)
        # Of the kinds of config only those with a table of decoder positions have these.
        keys = ("max_decoder_position_embeddings", "max_position_embeddings")
        # Where encoder and decoder are two models, the decoder has a config of its own.
        decoder: Any = getattr(model.config, "decoder", None) or model.config
        known = [value for key in keys if (value := getattr(decoder, key, None)) is not None]
        output = min([*known[:1], asked] if asked is not None else known[:1], default=None)
        default = configured_output(model) or output or _DEFAULT_OUTPUT
        return cls(prompt, output, default if output is None else min(default, output))

    def room(self, prompt: int, max_tokens: int | None) -> int:
        """How many tokens a prompt may be continued with.

        Raises:
            InputError: there is less room than was asked for.
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
    """How many tokens an encoder-decoder writes, by its generation_config; `max_length` counts the decoder's start."""
    config: Any = model.generation_config
    if config.max_new_tokens is not None:
        return int(config.max_new_tokens)
    return None if config.max_length is None else max(1, config.max_length - 1)
