"""The real service with a model that answers at once: what is left is the cost of HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runners.encoder import runner
from runners.inference import Numbers, Options, Prediction, TextInput, TokenInput


class InstantRunner(runner.EncoderRunner):
    """Class 1 for every text."""

    @property
    def ready(self) -> bool:
        return True

    async def load(self) -> None:
        """There is nothing to load."""

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        return [Prediction(Numbers(np.asarray(1)))] * len(texts)


# service.py, imported after this, takes it for the real one.
runner.EncoderRunner = InstantRunner  # type: ignore[misc]

from service import Encoder  # noqa: E402

__all__ = ["Encoder"]
