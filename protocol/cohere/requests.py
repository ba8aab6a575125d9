"""The bodies of Cohere's calls: what each field means, and which values this server does not have.

https://docs.cohere.com/reference/embed
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.prompt_names import find_input_prompt
from runners.core.answer_options import TruncationSide
from runners.core.errors import InputError
from runners.core.number_types import PositiveInt, TokenIds
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
_SIDES: Mapping[str | None, TruncationSide] = {"START": TruncationSide.LEFT, "END": TruncationSide.RIGHT}


class CohereContent(msgspec.Struct, forbid_unknown_fields=True):
    """A part of an input; only texts are served."""

    type: Literal["text"]
    text: str


class CohereInput(msgspec.Struct, forbid_unknown_fields=True):
    """An input in parts, of which it has one."""

    content: Annotated[list[CohereContent], Meta(min_length=1, max_length=1)]


class CohereEmbedRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `embed`: `texts`, or `inputs` that are texts.

    `input_type` selects the model's prompt, by its name or for queries, documents, classification or clustering.
    `truncate` says what happens to a text that has more tokens than `max_tokens` or than the model takes: `END` and
    `START` remove that side of it, `NONE` is an error. `START` has the model's limit only. `priority` has no effect.
    """

    texts: list[str] | None = None
    inputs: list[CohereInput] | None = None
    model: str | None = None
    input_type: str | None = None
    embedding_types: Annotated[list[EmbeddingType], Meta(min_length=1)] | None = None
    truncate: Literal["NONE", "START", "END"] | None = None
    max_tokens: PositiveInt | None = None
    output_dimension: PositiveInt | None = None
    priority: int | None = None
    # This field is read so that images can be refused.
    images: list[Any] | None = None

    def read_texts(self, limits: RequestLimits) -> list[str]:
        """
        Raises:
            LimitExceededError: there are more texts than the operator allows.
            InputError: there are none, or an empty one, or images.
        """
        if self.images:
            raise InputError("images cannot be embedded: this server embeds texts", "images")
        if (self.texts is None) is (self.inputs is None):
            raise InputError("give one of texts and inputs", "texts")
        name = "texts" if self.inputs is None else "inputs"
        texts = self.texts or [each.content[0].text for each in self.inputs or ()]
        if not texts:
            raise InputError(f"{name} is empty; give at least one", name)
        limits.check("max_client_batch_size", len(texts), name, name)
        for position, text in enumerate(texts):
            if not text:
                raise InputError(f"{name}[{position}] is empty; give at least a character", name)
        return texts

    def parameters(self, runner: Runner) -> dict[str, Any]:
        """The request's options, under the names of the other protocols' `parameters`.

        Raises:
            InputError: the model has no prompt of the `input_type`, or options exclude each other.
        """
        if self.max_tokens is not None and self.truncate == "START":
            raise InputError("max_tokens cannot be combined with START: leave out one of them", "max_tokens")
        named = {"dimensions": self.output_dimension, "prompt_name": find_input_prompt(runner, self.input_type)}
        if self.truncate is not None:
            named |= {"truncation": self.truncate != "NONE"}
        if self.truncate in _SIDES:
            named |= {"truncation_side": _SIDES[self.truncate]}
        return {name: value for name, value in named.items() if value is not None}


class CohereTokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `tokenize`. Special tokens are not added."""

    text: Annotated[str, Meta(min_length=1)]
    model: str | None = None


class CohereDetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `detokenize`."""

    tokens: TokenIds
    model: str | None = None
