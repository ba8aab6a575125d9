"""How often bfloat16 gives the label that float32 gives, on real text and the demo's trained heads.

make demo && python -m benchmarks.precision
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.texts import docstrings
from runners.core.arguments import Arguments
from runners.core.predictions import Numbers, Text, TextInput
from runners.encoder.runner import EncoderRunner

_MODELS = Path(__file__).resolve().parent.parent / "demo/models"


async def predict(folder: Path, dtype: str, texts: list[str]) -> list[NDArray[Any] | str]:
    """The label or labels of each text."""
    runner = EncoderRunner(Arguments.model_validate({"model_dir": str(folder), "dtype": dtype}))
    await runner.load()
    predictions = await runner.infer([TextInput(text) for text in texts], runner.default_options)
    runner.close()
    outputs = [prediction.main for prediction in predictions]
    return [output.values if isinstance(output, Numbers) else output.value for output in outputs
            if isinstance(output, Numbers | Text)]  # fmt: skip


def main() -> None:
    texts = [f"[MASK] {text}" for text in docstrings()[:500]]
    for task in ("sequence_classification", "token_classification", "fill_mask"):
        exact, rounded = (asyncio.run(predict(_MODELS / task, dtype, texts)) for dtype in ("float32", "bfloat16"))
        agreeing = np.concatenate(
            [np.atleast_1d(np.asarray(one == other)).ravel() for one, other in zip(exact, rounded, strict=True)]
        )
        sys.stdout.write(f"{task}: {agreeing.mean():.2%} of {agreeing.size} labels agree\n")


if __name__ == "__main__":
    main()
