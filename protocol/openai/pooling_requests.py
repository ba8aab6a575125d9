"""The fields that calls of encoders share, and the heads of their answers; names and meanings are vLLM's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from protocol.model_selection import name_in_answer
from protocol.openai.answer_ids import make_answer_id
from runners.core.errors import InputError
from runners.core.predictions import Prediction
from runners.core.runner import Runner

# `truncate_prompt_tokens` for the length that the model takes.
_MODEL_LENGTH = -1


class PoolingFields(msgspec.Struct, kw_only=True):
    """The fields of all calls of models that embed, rank or classify."""

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: Annotated[int, Meta(ge=_MODEL_LENGTH, lt=2**31)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    request_id: str | None = None

    def parameters(self, **more: Any) -> dict[str, Any]:
        """The request's options, under the names of the other protocols' `parameters`.

        Args:
            more: further options by these names; None for those that the request does not have.

        Raises:
            InputError: texts are to be truncated to another length than the model's.
        """
        if self.truncate_prompt_tokens not in (None, _MODEL_LENGTH):
            raise InputError(
                "truncate_prompt_tokens can only be -1: texts are truncated to the model's length",
                "truncate_prompt_tokens",
            )
        truncation = None if self.truncate_prompt_tokens is None else True
        named = {"truncation": truncation, "truncation_side": self.truncation_side, **more}
        return {name: value for name, value in named.items() if value is not None}

    def describe_answer(self, prefix: str, runner: Runner) -> dict[str, Any]:
        """The fields that an answer begins with."""
        return {
            "id": make_answer_id(prefix, self.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": name_in_answer(runner, self.model),
        }


def count_input_usage(predictions: Sequence[Prediction]) -> dict[str, int]:
    """The `usage` of a request that generates nothing."""
    tokens = sum(prediction.tokens for prediction in predictions)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
