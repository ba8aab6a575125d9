"""Text ranking: cross-encoders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.core.errors import ModelLoadError
from runners.core.predictions import RELEVANCE, OutputSpec
from runners.encoder.tasks.relevance import load_activation
from runners.encoder.tasks.sequence_classification import SequenceClassification


class TextRanking(SequenceClassification):
    """Scores how relevant a text is to a query; the two are a pair.

    This is a classification with one class. It has one more named output, `relevance`.
    """

    def prepare(self) -> None:
        super().prepare()
        if self.classes != 1:
            raise ModelLoadError(f"the model has {self.classes} classes, and text_ranking is for models with one")
        self._activation = load_activation(self.arguments, self.config)

    def named_output(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """As in `SequenceClassification`; `relevance` is float32 [], as `CrossEncoder.predict` returns it."""
        if name == RELEVANCE:
            return self._apply(self._activation, scores).reshape(())
        return super().named_output(name, scores)

    def named_outputs(self) -> list[OutputSpec]:
        return [*super().named_outputs(), OutputSpec(RELEVANCE, np.float32, (-1,))]
