"""Answers to questions: spans of a context, of the scores that tokens have to be an answer's first and last.

The method is that of `transformers`' question answering pipeline, which its version 5 no longer has:
https://github.com/huggingface/transformers/blob/v4.57.0/src/transformers/pipelines/question_answering.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runners.answers import AnswerOptions
from runners.encoder.reading import Source
from runners.inference import Table


def find_answers(scores: Sequence[NDArray[np.float32]], sources: Sequence[Source], wanted: AnswerOptions) -> Table:
    """Columns `answer`, `score`, `start` and `end` of the best answers, best first, `top_k` of them at most.

    Args:
        scores: float32 [tokens, 2] of each window of a context, logits of the start and the end of an answer.
        sources: where the windows' tokens are in the context.
    """
    best: dict[tuple[int, int], float] = {}
    none = 1.0
    for logits, source in zip(scores, sources, strict=True):
        context = ~source.special
        allowed = context.copy()
        # That there is no answer is said by the first token, [CLS].
        allowed[0] |= wanted.handle_impossible_answer
        starts, ends = _softmax(logits[allowed]).T
        if wanted.handle_impossible_answer and not context[0]:
            none = min(none, float(starts[0] * ends[0]))
            starts, ends = starts[1:], ends[1:]
        _add_spans(best, starts, ends, np.flatnonzero(context), source, wanted)
    records = [(score, start, end) for (start, end), score in best.items()]
    if wanted.handle_impossible_answer:
        records.append((none, 0, 0))
    records.sort(key=lambda record: -record[0])
    records = records[: wanted.top_k or 1]
    context_text = sources[0]
    return Table(
        {
            "answer": np.array([context_text.cut(start, end) for _, start, end in records], dtype=object),
            "score": np.array([score for score, _, _ in records], dtype=np.float32),
            "start": np.array([start for _, start, _ in records], dtype=np.int64),
            "end": np.array([end for _, _, end in records], dtype=np.int64),
        }
    )


def _add_spans(
    best: dict[tuple[int, int], float],
    starts: NDArray[np.float32],
    ends: NDArray[np.float32],
    tokens: NDArray[np.int64],
    source: Source,
    wanted: AnswerOptions,
) -> None:
    """Add a window's best spans by their places in the context, each with its highest score."""
    count, most = len(starts), min(wanted.max_answer_len, len(starts))
    # [tokens of an answer - 1, first token]
    products = np.zeros((most, count), dtype=np.float32)
    for more in range(most):
        products[more, : count - more] = starts[: count - more] * ends[more:]
    found: set[tuple[int, int]] = set()
    for index in np.argsort(-products, axis=None, kind="stable").tolist():
        more, first = divmod(index, count)
        score = float(products[more, first])
        if len(found) == (wanted.top_k or 1) or not score:
            return
        span = _whole_words(source, int(tokens[first]), int(tokens[first + more]))
        found.add(span)
        best[span] = max(best.get(span, 0.0), score)


def _whole_words(source: Source, first: int, last: int) -> tuple[int, int]:
    """Where the words start and end that two tokens are of, without the space that some tokenizers count to a token."""
    while source.continues[first]:
        first -= 1
    while last + 1 < len(source.continues) and source.continues[last + 1]:
        last += 1
    start, end = int(source.spans[first, 0]), int(source.spans[last, 1])
    text = source.cut(start, end)
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the tokens: float32 [tokens, 2]."""
    exponents = np.exp(logits - logits.max(axis=0))
    return np.asarray(exponents / exponents.sum(axis=0))
