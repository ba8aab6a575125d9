"""Lets a real device assert happen in the engine, and prints what became of it: `python -m tests.gpu.broken_device`.

It is a process of its own, whose GPU cannot be used afterwards.
"""

from __future__ import annotations

import asyncio
import json
import sys

import numpy as np
import torch

from benchmarks.gpu.engine import Engine, make_texts
from runners.core.errors import RunnerError
from runners.encoder.sequences import TokenizedText
from tests.gpu.families import FAMILIES, Sizes

_SECONDS = 60


async def _ask(engine: Engine, text: TokenizedText) -> str:
    """The kind of the answer to a text."""
    try:
        [scores] = await asyncio.wait_for(engine.infer([text]), _SECONDS)
    except (RunnerError, TimeoutError) as error:
        return type(error).__name__
    return "scores" if np.isfinite(scores).all() else "no scores"


async def main() -> None:
    device = torch.device("cuda")
    model = FAMILIES["bert"].make("sequence_classification", Sizes(64, 2, 1000, 64, 1024)).to(device)  # type: ignore[arg-type]
    engine = Engine(model, False, 1024)
    [good] = make_texts([9], 1000)
    # No embedding has this id.
    bad = TokenizedText(np.full(9, 10**6), np.zeros(9, np.int64), None, False)
    answers = [await _ask(engine, text) for text in (good, bad, good)]
    sys.stdout.write(f"{json.dumps({'answers': answers, 'failed': engine.device.failed})}\n")


if __name__ == "__main__":
    asyncio.run(main())
