"""How fast the model alone can be on this machine: one process, packed batches, no HTTP, no queue.

    python -m benchmarks.ceiling FOLDER TEXTS.json DTYPE

Prints JSON: texts a second in full batches and one at a time, and the share of the oneDNN matrix-multiplication limit
that the full batches reach with their real tokens.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from runners.core.arguments import Arguments
from runners.core.predictions import TextInput
from runners.encoder.runner import EncoderRunner
from runners.modeling.loading import BATCH_TOKENS_ON_CPU
from runners.modeling.linear_kernels import VOCABULARY
from runners.modeling.packed_linear import PackedLinear


def measure(folder: str, texts: list[str], dtype: str) -> dict[str, float]:
    """In the thread that loads the model, as in the server."""
    runner = EncoderRunner(Arguments.model_validate({"model_dir": folder, "dtype": dtype}))
    loaded = runner._load()
    encoded_texts = loaded.tokenizer.tokenize([TextInput(text) for text in texts], offsets=False)
    tokenized = [encoded.text for encoded in encoded_texts]
    batches: list[list[Any]] = [[]]
    for text in tokenized:
        if sum(len(one.input_ids) for one in batches[-1]) + len(text.input_ids) > BATCH_TOKENS_ON_CPU:
            batches.append([])
        batches[-1].append(text)

    @torch.inference_mode()
    def run(groups: list[list[Any]]) -> float:
        start = time.perf_counter()
        for group in groups:
            loaded.encoder_task.split_scores(*loaded.forward.run(group))
        return sum(map(len, groups)) / (time.perf_counter() - start)

    run(batches)
    full = median(run(batches) for _ in range(3))
    alone = run([[text] for text in tokenized[:100]])
    multiplications = sum(
        module.in_features * module.out_features
        for module in loaded.model.modules()
        if isinstance(module, PackedLinear | nn.Linear) and module.out_features < VOCABULARY
    )
    tokens = sum(len(text.input_ids) for text in tokenized)
    flops = full / len(texts) * tokens * 2 * multiplications
    return {"full": full, "alone": alone, "of_limit": flops / _matrix_limit(dtype)}


@torch.inference_mode()
def _matrix_limit(dtype: str) -> float:
    """Floating-point operations a second of packed linear layers of BERT-base's shapes at a full batch."""
    flops = seconds = 0.0
    for inputs, outputs in ((768, 768), (768, 3072), (3072, 768)):
        layer = PackedLinear(nn.Linear(inputs, outputs, dtype=getattr(torch, dtype)))
        rows = torch.randn(1, BATCH_TOKENS_ON_CPU, inputs, dtype=layer.dtype)
        times = []
        for _ in range(20):
            start = time.perf_counter()
            layer(rows)
            times.append(time.perf_counter() - start)
        share = 4 if inputs == outputs else 1
        flops += share * 2 * BATCH_TOKENS_ON_CPU * inputs * outputs
        seconds += share * median(times)
    return flops / seconds


if __name__ == "__main__":
    folder, texts, dtype = sys.argv[1:]
    sys.stdout.write(json.dumps(measure(folder, json.loads(Path(texts).read_text()), dtype)) + "\n")
