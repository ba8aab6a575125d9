"""Answers to questions: spans of a context, of the scores that tokens have to be an answer's first and last.

The method is that of `transformers`' question answering pipeline, which its version 5 no longer has:
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/pipelines/question_answering.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runners.answers import AnswerOptions
from runners.encoder.probabilities import softmax
from runners.encoder.reading import Source
from runners.inference import Table

# Of a window, beside those for `top_k`.
_CANDIDATES = 2048


def find_answers(scores: Sequence[NDArray[np.float32]], sources: Sequence[Source], wanted: AnswerOptions) -> Table:
    """Columns `answer`, `score`, `start` and `end` of the best answers, best first, `top_k` of them at most.

    Args:
        scores: float32 [tokens, 2] of each window of a context, logits of the start and the end of an answer.
        sources: where the windows' tokens are in the context.
    """
    none = 1.0
    candidates = []
    for logits, source in zip(scores, sources, strict=True):
        context = ~source.special
        allowed = context.copy()
        # That there is no answer is said by the first token, [CLS].
        allowed[0] |= wanted.handle_impossible_answer
        starts, ends = softmax(logits[allowed], axis=0).T
        if wanted.handle_impossible_answer and not context[0]:
            none = min(none, float(starts[0] * ends[0]))
            starts, ends = starts[1:], ends[1:]
        candidates.append(_find_candidates(starts, ends, np.flatnonzero(context), source, wanted))
    products, first, last = (np.concatenate(columns) for columns in zip(*candidates, strict=True))
    best: dict[tuple[int, int], float] = {}
    for index in np.argsort(-products, kind="stable").tolist():
        if len(best) == (wanted.top_k or 1):
            break
        best.setdefault(_strip(sources[0], int(first[index]), int(last[index])), float(products[index]))
    records = [(score, start, end) for (start, end), score in best.items()]
    if wanted.handle_impossible_answer:
        records.append((none, 0, 0))
    records.sort(key=lambda record: -record[0])
    # Scores that round to nothing are none, but there is always an answer.
    records = records[: wanted.top_k or 1] or [(0.0, 0, 0)]
    return Table(
        {
            "answer": np.array([sources[0].cut(start, end) for _, start, end in records], dtype=object),
            "score": np.array([score for score, _, _ in records], dtype=np.float32),
            "start": np.array([start for _, start, _ in records], dtype=np.int64),
            "end": np.array([end for _, _, end in records], dtype=np.int64),
        }
    )


def _find_candidates(
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    tokens: NDArray[np.int64],
    source: Source,
    wanted: AnswerOptions,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """A window's best spans, in no order: their scores, and where the words that they are of start and end."""
    count, most = len(starts), min(wanted.max_answer_len, len(starts))
    # [tokens of an answer - 1, first token]
    products = np.zeros((most, count), dtype=np.float32)
    for more in range(most):
        products[more, : count - more] = starts[: count - more] * ends[more:]
    # Several may be of the same words.
    enough = min(products.size, _CANDIDATES + 4 * (wanted.top_k or 1))
    best = np.argpartition(-products, enough - 1, axis=None)[:enough]
    best = best[products.ravel()[best] > 0]
    longer, first = np.divmod(best, count)
    begins = np.flatnonzero(~source.continues)
    words = np.cumsum(~source.continues) - 1
    word_ends = np.append(begins[1:], len(source.continues)) - 1
    return (
        products.ravel()[best],
        source.spans[begins[words[tokens[first]]], 0],
        source.spans[word_ends[words[tokens[first + longer]]], 1],
    )


def _strip(source: Source, start: int, end: int) -> tuple[int, int]:
    """A span without the spaces around it, which some tokenizers count to tokens."""
    text = source.cut(start, end)
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
