"""The calls that have parameters."""

from __future__ import annotations

from enum import StrEnum


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
