"""The spans that answer a question, each scored by the stock model."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer


@cache
def stock(folder: str) -> tuple[Any, Any]:
    return AutoTokenizer.from_pretrained(folder), AutoModelForQuestionAnswering.from_pretrained(folder).eval()


def find_spans(
    folder: str, question: str, context: str, most: int, impossible: bool, stride: int
) -> dict[tuple[int, int], float]:
    """The score of every span of whole words, by the place in the context; (0, 0) is that there is no answer."""
    tokenizer, model = stock(folder)
    windows = tokenizer(
        question, context, truncation="only_second", max_length=384, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True, padding=False,
    )  # fmt: skip
    best: dict[tuple[int, int], float] = {}
    none = 1.0
    for number, encoding in enumerate(windows.encodings):
        inputs = {name: torch.tensor([windows[name][number]]) for name in tokenizer.model_input_names}
        with torch.inference_mode():
            output = model(**inputs)
        inside = np.array([sequence == 1 for sequence in encoding.sequence_ids])
        allowed = inside.copy()
        allowed[0] |= impossible
        starts, ends = (
            np.where(allowed, np.exp(logits[0].numpy() - logits[0].numpy()[allowed].max()), 0)
            for logits in (output.start_logits, output.end_logits)
        )
        starts, ends = starts / starts.sum(), ends / ends.sum()
        none = min(none, starts[0] * ends[0])
        words = encoding.word_ids
        for first in np.flatnonzero(inside):
            for last in range(first, min(first + most, len(inside))):
                if not inside[last]:
                    break
                start = min(encoding.offsets[i][0] for i in np.flatnonzero(inside) if words[i] == words[first])
                end = max(encoding.offsets[i][1] for i in np.flatnonzero(inside) if words[i] == words[last])
                text = context[start:end]
                span = (start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip()))
                best[span] = max(best.get(span, 0.0), float(starts[first] * ends[last]))
    return best | ({(0, 0): none} if impossible else {})
