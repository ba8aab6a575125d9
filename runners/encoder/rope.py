"""The length up to which rotary positions do not depend on the longest text of a batch."""

from __future__ import annotations

from transformers import PreTrainedModel

from runners.modeling.rotary import find_length_dependent


class LengthDependentRope:
    """The rotary embeddings of a model that depend on the longest text of a batch.

    Attributes:
        limit: up to how many tokens all texts get the same positions; None where there are no such embeddings.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._embeddings = list(find_length_dependent(model))
        self.limit: int | None = min((embedding.limit for embedding in self._embeddings), default=None)

    def reset(self) -> None:
        """Forget what earlier batches have made dynamic scaling grow to."""
        for embedding in self._embeddings:
            embedding.reset()
