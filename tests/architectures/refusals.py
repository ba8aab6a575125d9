"""What the stock models refuse of text alone, by hand: the sweep finds the same, or fails."""

from __future__ import annotations

from dataclasses import dataclass

from runners.core.task import Task
from tests.architectures.registry import Pair


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stock model does not run.

    Attributes:
        reason: for the page.
        message: a part of what it raises, so that no other failure is taken for this one.
    """

    reason: str
    message: str


_ALWAYS: dict[str, Refusal] = {
    "bros": Refusal("needs boxes", "bbox"),
    "dpr": Refusal("has no token vectors", "no token vectors"),
    "layoutlmv2": Refusal("needs images and detectron2", "detectron2"),
    "lxmert": Refusal("needs features of images", "visual_feats"),
    "tapas": Refusal("needs tables", "too many indices for tensor of dimension 2"),
}
_OF_TASK: dict[tuple[str, Task], Refusal] = {
    ("mra", Task.SEQUENCE_CLASSIFICATION): Refusal("needs a CUDA kernel", "hardly depend on the text"),
    ("perceiver", Task.TEXT_EMBEDDING): Refusal(
        "takes no input_ids", "missing 1 required positional argument: 'inputs'"
    ),
    ("t5gemma2", Task.TEXT_EMBEDDING): Refusal(
        "needs the decoder's input", "exactly one of input_ids or inputs_embeds"
    ),
}
_FLOAT32_ONLY = "runs in float32 only"
_IN_16_BIT: dict[str, Refusal] = {
    "deberta": Refusal(_FLOAT32_ONLY, "to have the same dtype"),
    "fnet": Refusal(_FLOAT32_ONLY, "Unsupported dtype"),
    "mra": Refusal(_FLOAT32_ONLY, "must have the same dtype"),
    "reformer": Refusal(_FLOAT32_ONLY, "mixed dtype"),
    "xlnet": Refusal(_FLOAT32_ONLY, "expected scalar type Float"),
}


def stock_refusal(pair: Pair, dtype: str) -> Refusal | None:
    """Why the stock model does not run in this dtype from text alone; None where it does."""
    refusal = _ALWAYS.get(pair.model_type) or _OF_TASK.get((pair.model_type, pair.task))
    return refusal or (_IN_16_BIT.get(pair.model_type) if dtype != "float32" else None)
