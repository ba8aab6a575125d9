"""Answers to questions: spans of a context, by the scores of tokens to be the first or the last token of the answer.

The method is that of the question answering pipeline of `transformers`, which was removed in version 5:
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/pipelines/question_answering.py
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AnswerOptions
from runners.core.predictions import Records
from runners.encoder.sequences import TokenSpans
from runners.encoder.tasks.probabilities import softmax

# Candidates of a window, beside those for `top_k`.
_CANDIDATES = 2048


def find_answers(candidates: NDArray[np.float64], token_spans: TokenSpans, answer_options: AnswerOptions) -> Records:
    """Pick the best answers of a context.

    Args:
        candidates: float64 [candidates, 3], those of all windows (see `find_candidates`).
        token_spans: the tokens of the context.

    Returns:
        `answer`, `score`, `start` and `end`, [at most top_k] each, best first.
    """
    is_none = candidates[:, 1] < 0
    records = _pick_best(candidates[~is_none], answer_options.top_k or 1).tolist()
    if answer_options.handle_impossible_answer:
        records.append([min([1.0, *candidates[is_none, 0].tolist()]), 0, 0])
    records.sort(key=lambda record: -record[0])
    # Candidates whose score rounds to 0 were dropped, but there is always an answer.
    records = records[: answer_options.top_k or 1] or [[0.0, 0, 0]]
    spans = [(int(start), int(end)) for _, start, end in records]
    return Records(
        {
            "answer": np.array([token_spans.cut(start, end) for start, end in spans], dtype=object),
            "score": np.array([score for score, _, _ in records], dtype=np.float32),
            "start": np.array([start for start, _ in spans], dtype=np.int64),
            "end": np.array([end for _, end in spans], dtype=np.int64),
        }
    )


def find_candidates(
    logits: NDArray[np.float32], token_spans: TokenSpans, answer_options: AnswerOptions
) -> NDArray[np.float64]:
    """Find the best answers in a window.

    Args:
        logits: float32 [tokens, 2], scores of each token to be the first and the last of the answer.
        token_spans: the tokens of the window.

    Returns:
        float64 [candidates, 3]: score, start and end of each, no two with the same place. If
        `handle_impossible_answer` is set, one more has the score that there is no answer, and the start -1.
    """
    context = ~token_spans.special
    allowed = context.copy()
    # The score of the first token, [CLS], says that there is no answer.
    allowed[0] |= answer_options.handle_impossible_answer
    starts, ends = softmax(logits[allowed], axis=0).T
    none = np.empty((0, 3))
    if answer_options.handle_impossible_answer and not context[0]:
        none = np.array([[float(starts[0] * ends[0]), -1, -1]])
        starts, ends = starts[1:], ends[1:]
    products, first, last = _find_spans(starts, ends, np.flatnonzero(context), token_spans, answer_options)
    if not len(products):
        return none
    low = int(first.min())
    begins, finishes = _find_edges(token_spans.cut(low, int(last.max())))
    stripped = [np.minimum(begins[first - low] + low, last), np.maximum(finishes[last - low] + low, first)]
    return np.concatenate([_pick_best(np.column_stack([products, *stripped]), answer_options.top_k or 1), none])


def _pick_best(candidates: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The candidates with the highest scores, best first, at most one per place: float64 [at most `count`, 3]."""
    ordered = candidates[np.argsort(-candidates[:, 0], kind="stable")]
    _, places = np.unique(ordered[:, 1:], axis=0, return_index=True)
    return ordered[np.sort(places)[:count]]


def _find_edges(text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where a span of a text starts and ends without the spaces around it.

    Returns:
        Two arrays, int64 [characters + 1] each. A span from place i to place j starts at `begins[i]`, the first
        character from i on that is no space, and ends at `finishes[j]`, after the last character before j that is none.
    """
    spaces = np.array([*map(str.isspace, text)], dtype=bool)
    places = np.arange(len(text) + 1)
    begins = np.append(np.where(spaces, len(text), places[:-1]), len(text))
    finishes = np.insert(np.where(spaces, 0, places[1:]), 0, 0)
    return np.minimum.accumulate(begins[::-1])[::-1], np.maximum.accumulate(finishes)


def _find_spans(
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    tokens: NDArray[np.int64],
    token_spans: TokenSpans,
    answer_options: AnswerOptions,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """The best spans of a window, in no order; a span covers whole words.

    Args:
        starts: float32 [context tokens], probability of each token to be the first.
        ends: float32 [context tokens], probability of each token to be the last.
        tokens: int64 [context tokens], positions of these tokens in the window.

    Returns:
        Scores, starts and ends: float32, int64 and int64 [spans].
    """
    count, most = len(starts), min(answer_options.max_answer_len, len(starts))
    # [tokens of an answer - 1, first token]
    products = np.zeros((most, count), dtype=np.float32)
    for more in range(most):
        products[more, : count - more] = starts[: count - more] * ends[more:]
    # Several spans of tokens may cover the same words.
    enough = min(products.size, _CANDIDATES + 4 * (answer_options.top_k or 1))
    best = np.argpartition(-products, enough - 1, axis=None)[:enough]
    best = best[products.ravel()[best] > 0]
    longer, first = np.divmod(best, count)
    begins = np.flatnonzero(~token_spans.continues)
    words = np.cumsum(~token_spans.continues) - 1
    word_ends = np.append(begins[1:], len(token_spans.continues)) - 1
    return (
        products.ravel()[best],
        token_spans.spans[begins[words[tokens[first]]], 0],
        token_spans.spans[word_ends[words[tokens[first + longer]]], 1],
    )
