"""The calls that have parameters, and the refusal of a parameter."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from runners.core.errors import UnsupportedError


class ParameterSet(StrEnum):
    """The call whose parameters are meant."""

    COMPLETIONS = "completions"
    CHATS = "chat/completions"
    RESPONSES = "responses"
    # The `parameters` of V1 and the Open Inference Protocol; unknown ones are refused.
    PARAMETERS = "parameters"
    EMBEDDINGS = "embeddings"
    RERANK = "rerank"
    SCORE = "score"
    CLASSIFY = "classify"
    POOLING = "pooling"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


@dataclass(frozen=True, slots=True)
class RefusedParameter:
    """The refusal of a parameter that would change the answer.

    Attributes:
        neutral: the values that ask for nothing, beside null.
        on_vllm: whether vLLM implements the parameter, perhaps only with an argument of the server.
        instead: the parameter that means the same.
    """

    neutral: tuple[Any, ...] = ()
    on_vllm: bool = True
    instead: str = ""

    def check(self, name: str, value: Any) -> None:
        """
        Raises:
            UnsupportedError: the value asks for something; the message says which values are allowed.
        """
        if value in self.neutral:
            return
        allowed = ", ".join(msgspec.json.encode(each).decode() for each in self.neutral)
        advice = f"use {self.instead}" if self.instead else f"allowed: {allowed}" if allowed else ""
        raise UnsupportedError(name, name, self.on_vllm, advice)


OF_OPENAI = RefusedParameter(on_vllm=False)
