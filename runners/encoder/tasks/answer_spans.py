"""Answers to questions: spans of a context, of the scores that tokens have to be an answer's first and last.

The method is that of `transformers`' question answering pipeline, which its version 5 no longer has:
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/pipelines/question_answering.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AnswerOptions
from runners.core.predictions import Records
from runners.encoder.sequences import Source
from runners.encoder.tasks.probabilities import softmax

# Of a window, beside those for `top_k`.
_CANDIDATES = 2048


def find_answers(candidates: NDArray[np.float64], source: Source, wanted: AnswerOptions) -> Records:
    """Columns `answer`, `score`, `start` and `end` of the best answers, best first, `top_k` of them at most.

    Args:
        candidates: float64 [candidates, 3], of all windows of a context as `find_candidates` gives them.
        source: the context.
    """
    is_none = candidates[:, 1] < 0
    records = _pick_best(candidates[~is_none], wanted.top_k or 1).tolist()
    if wanted.handle_impossible_answer:
        records.append([min([1.0, *candidates[is_none, 0].tolist()]), 0, 0])
    records.sort(key=lambda record: -record[0])
    # Scores that round to nothing are none, but there is always an answer.
    records = records[: wanted.top_k or 1] or [[0.0, 0, 0]]
    spans = [(int(start), int(end)) for _, start, end in records]
    return Records(
        {
            "answer": np.array([source.cut(start, end) for start, end in spans], dtype=object),
            "score": np.array([score for score, _, _ in records], dtype=np.float32),
            "start": np.array([start for start, _ in spans], dtype=np.int64),
            "end": np.array([end for _, end in spans], dtype=np.int64),
        }
    )


def find_candidates(logits: NDArray[np.float32], source: Source, wanted: AnswerOptions) -> NDArray[np.float64]:
    """The best answers in a window, no two of the same place: float64 [candidates, 3], score, start and end each.

    The score that there is no answer, where that is asked for, has the start -1.

    Args:
        logits: float32 [tokens, 2] of the start and the end of an answer.
        source: where the window's tokens are in the context.
    """
    context = ~source.special
    allowed = context.copy()
    # That there is no answer is said by the first token, [CLS].
    allowed[0] |= wanted.handle_impossible_answer
    starts, ends = softmax(logits[allowed], axis=0).T
    none = np.empty((0, 3))
    if wanted.handle_impossible_answer and not context[0]:
        none = np.array([[float(starts[0] * ends[0]), -1, -1]])
        starts, ends = starts[1:], ends[1:]
    products, first, last = _find_candidates(starts, ends, np.flatnonzero(context), source, wanted)
    if not len(products):
        return none
    low = int(first.min())
    begins, finishes = _find_edges(source.cut(low, int(last.max())))
    stripped = [np.minimum(begins[first - low] + low, last), np.maximum(finishes[last - low] + low, first)]
    return np.concatenate([_pick_best(np.column_stack([products, *stripped]), wanted.top_k or 1), none])


def _pick_best(candidates: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """Those of the highest scores, best first, one of each place."""
    ordered = candidates[np.argsort(-candidates[:, 0], kind="stable")]
    _, places = np.unique(ordered[:, 1:], axis=0, return_index=True)
    return ordered[np.sort(places)[:most]]


def _find_edges(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each place in a text: where what follows it begins, and what is before it ends, without spaces around."""
    spaces = np.array([*map(str.isspace, text)], dtype=bool)
    places = np.arange(len(text) + 1)
    begins = np.append(np.where(spaces, len(text), places[:-1]), len(text))
    finishes = np.insert(np.where(spaces, 0, places[1:]), 0, 0)
    return np.minimum.accumulate(begins[::-1])[::-1], np.maximum.accumulate(finishes)


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
