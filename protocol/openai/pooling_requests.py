"""The fields that calls of encoders share, and the heads of their answers; names and meanings are vLLM's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from protocol.http.body import Body
from protocol.model_selection import name_in_answer
from protocol.openai.answer_ids import make_answer_id
from protocol.openai.parameters import BodyDecoder
from protocol.text_inputs import Inputs, read_text_inputs
from runners.core.errors import InputError
from runners.core.predictions import Options, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
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

    def resolve(self, runner: Runner, limits: RequestLimits, **more: Any) -> Options:
        """The request's options.

        Args:
            more: further options, under the names of the other protocols' `parameters`; None for those that the
                request does not have.

        Raises:
            LimitExceededError: an option asks for more than the operator allows.
            InputError: an option has a wrong value, or the task does not have it.
        """
        named = {"truncation_side": self.truncation_side, **more}
        options = resolve_options(runner, {name: each for name, each in named.items() if each is not None}, limits)
        if self.truncate_prompt_tokens is None:
            return options
        # Longer texts are truncated, whatever the operator says of them.
        overflow = options.overflow.model_copy(update={"truncation": True, "stride": None})
        length = self._length(runner)
        return replace(options, overflow=overflow, prompt=replace(options.prompt, truncate_to=length))

    def _length(self, runner: Runner) -> int:
        """The most tokens that are kept.

        Raises:
            InputError: the model does not take as many, or there are none.
        """
        length, longest = self.truncate_prompt_tokens, runner.max_length
        if length in (None, _MODEL_LENGTH):
            return longest
        if not 0 < length <= longest:
            raise InputError(
                f"truncate_prompt_tokens is {length}; it can be -1, or 1 to {longest}, which the model takes",
                "truncate_prompt_tokens",
            )
        return length

    def describe_answer(self, prefix: str, runner: Runner) -> dict[str, Any]:
        """The fields that an answer begins with."""
        return {
            "id": make_answer_id(prefix, self.request_id),
            "object": "list",
            "created": int(time.time()),
            "model": name_in_answer(runner, self.model),
        }


class InputFields(PoolingFields, kw_only=True):
    """The fields of calls whose texts are no pairs."""

    input: Inputs
    add_special_tokens: bool | None = None

    def resolve(self, runner: Runner, limits: RequestLimits, **more: Any) -> Options:
        """As in `PoolingFields`."""
        options = super().resolve(runner, limits, **more)
        if self.add_special_tokens is not False:
            return options
        return replace(options, prompt=replace(options.prompt, add_special_tokens=False))

    def truncate_inputs(
        self, inputs: Sequence[TextInput | TokenInput], runner: Runner
    ) -> Sequence[TextInput | TokenInput]:
        """The inputs; those that the caller has tokenized are truncated as the texts will be."""
        if self.truncate_prompt_tokens is None:
            return inputs
        length = self._length(runner)
        kept = slice(-length, None) if self.truncation_side == "left" else slice(length)
        return [TokenInput(each.input_ids[kept]) if isinstance(each, TokenInput) else each for each in inputs]


InputT = TypeVar("InputT", bound=InputFields)


async def read_inputs(
    decoder: BodyDecoder[InputT], body: Body, limits: RequestLimits
) -> tuple[InputT, Sequence[TextInput | TokenInput]]:
    """The request in a body, and its inputs.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed, or has a parameter that this server does not implement.
    """

    def read(data: bytes) -> tuple[InputT, Sequence[TextInput | TokenInput]]:
        call = decoder.decode(data, limits)
        return call, read_text_inputs(call.input, "input", limits)

    return await body.decode(read)


def count_input_usage(predictions: Sequence[Prediction]) -> dict[str, int]:
    """The `usage` of a request that generates nothing."""
    tokens = sum(prediction.tokens for prediction in predictions)
    return {"prompt_tokens": tokens, "total_tokens": tokens}
