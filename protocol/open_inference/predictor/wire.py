"""The connection to the predictor that REST and gRPC implement, and the errors of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.tensors import Tensor
from runners.core.errors import PredictorTimeoutError

# Characters of the predictor's own message that clients get.
_LONGEST_QUOTE = 200


@dataclass(frozen=True, slots=True)
class Metadata:
    """The predictor's description of its model.

    Attributes:
        datatypes: the datatypes of the inputs by name; empty if it lists none.
        outputs: the names of the outputs; empty if it lists none.
        binary: whether it has the extension for binary tensors; always true over gRPC.
    """

    datatypes: Mapping[str, str]
    outputs: Sequence[str]
    binary: bool


class Wire(Protocol):
    """A connection to the predictor; all calls may raise a PredictorError."""

    def metadata(self, seconds: float) -> Metadata: ...

    def infer(self, inputs: Sequence[Tensor], output: str | None, binary: bool, seconds: float) -> list[Tensor]:
        """The named output, or all outputs if `output` is None."""

    def ready(self, seconds: float) -> bool: ...

    def close(self) -> None: ...


def make_timeout_error() -> PredictorTimeoutError:
    return PredictorTimeoutError("the predictor did not answer within predictor_request_timeout_seconds")


def quote_words(words: str) -> str:
    """The predictor's message on one line."""
    line = " ".join(words.split())
    return line if len(line) <= _LONGEST_QUOTE else f"{line[:_LONGEST_QUOTE]} ..."
