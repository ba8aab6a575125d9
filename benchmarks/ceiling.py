"""How fast the model alone can be on this machine: one process, packed batches, no HTTP, no queue.

    python -m benchmarks.ceiling FOLDER TEXTS.json DTYPE

Prints a line when the model is loaded, and then for every line that it reads, a JSON object such as
{"form": "full", "seconds": 5}, what it measured: texts a second in full batches or each text alone and, for full
batches, the share of the machine's matrix-multiplication limit, measured right after, that their real tokens reach.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.machine import matrix_speeds
from runners.core.arguments import Arguments
from runners.core.predictions import TextInput
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.runner import EncoderRunner
from runners.modeling.linear_kernels import VOCABULARY
from runners.modeling.loading import BATCH_TOKENS_ON_CPU, build_meta_model, load_config


def main(folder: str, texts: list[str], dtype: str) -> None:
    """In the thread that loads the model, as in the server."""
    arguments = Arguments.model_validate({"model_dir": folder, "dtype": dtype})
    runner = EncoderRunner(arguments)
    runner._load()
    loaded = runner._model()
    encoded_texts = loaded.tokenizer.tokenize([TextInput(text) for text in texts], offsets=False)
    tokenized = [encoded.text for encoded in encoded_texts]
    forms = {"full": _full_batches(tokenized), "alone": [[text] for text in tokenized]}
    endless = {form: itertools.cycle(batches) for form, batches in forms.items()}
    fixed, by_token = count_flops(arguments, type(loaded.encoder_task).auto_class)
    flops = fixed + by_token * sum(len(text.input_ids) for text in tokenized) / len(tokenized)
    for batches in forms.values():
        _run(loaded, iter(batches[:20]), 60)
    _say("ready")
    for line in sys.stdin:
        asked = json.loads(line)
        # All batches, so that every measurement is of the same texts.
        least = len(forms["full"]) if asked["form"] == "full" else 1
        speed = _run(loaded, endless[asked["form"]], asked["seconds"], least)
        measured = {"texts_a_second": speed}
        if asked["form"] == "full":
            measured["of_limit"] = speed * flops / max(matrix_speeds(dtype).values())
        _say(json.dumps(measured))


def _full_batches(texts: list[Any]) -> list[list[Any]]:
    batches: list[list[Any]] = [[]]
    for text in texts:
        if sum(len(one.input_ids) for one in batches[-1]) + len(text.input_ids) > BATCH_TOKENS_ON_CPU:
            batches.append([])
        batches[-1].append(text)
    return batches


@torch.inference_mode()
def _run(loaded: LoadedModel, batches: Iterator[list[Any]], seconds: float, multiple: int = 1) -> float:
    """Texts a second of so many seconds, and then to the end of a multiple of batches."""
    start = time.perf_counter()
    done = number = 0
    for number, batch in enumerate(batches, start=1):
        loaded.encoder_task.compute_scores(*loaded.forward.run(batch), [loaded.default_options] * len(batch))
        done += len(batch)
        if number % multiple == 0 and time.perf_counter() - start >= seconds:
            break
    return done / (time.perf_counter() - start)


def count_flops(arguments: Arguments, auto_class: type[Any]) -> tuple[float, float]:
    """What the linear layers of the stock model compute for a text, and for each of its tokens besides.

    The server may skip rows that no head reads: its work is not what is counted. Vocabulary layers are left out, since
    the stock model runs them on all tokens and every server that is fast on masks alone.
    """
    model: nn.Module = build_meta_model(arguments, auto_class, load_config(arguments))
    model.eval()
    flops = 0

    def count(layer: nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        nonlocal flops
        flops += 2 * inputs[0].numel() * layer.out_features

    for module in model.modules():
        if isinstance(module, nn.Linear) and module.out_features < VOCABULARY:
            module.register_forward_hook(count)
    counted = []
    for tokens in (8, 16):
        flops = 0
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, tokens, dtype=torch.long, device="meta"))
        counted.append(flops)
    by_token = (counted[1] - counted[0]) / 8
    return counted[0] - 8 * by_token, by_token


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), sys.argv[3])
