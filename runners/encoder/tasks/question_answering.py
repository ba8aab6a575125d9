"""Question answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForQuestionAnswering

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError
from runners.core.predictions import ElementType, Numbers, Options, OutputSpec, Records, TextInput
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.tasks.answer_spans import find_answers, find_candidates
from runners.encoder.tasks.encoder_task import EncoderTask
from runners.encoder.tokenization import TextTokenizer

# How many tokens the windows of a context share, as in the pipeline of `transformers`.
_DEFAULT_STRIDE = 128


class QuestionAnswering(EncoderTask):
    """Finds the answer to a question in a context; a text is a pair of a question and its context."""

    auto_class = AutoModelForQuestionAnswering
    accepts_pairs = needs_pairs = True
    model_outputs = 2
    answer_options = frozenset({"top_k", "max_answer_len", "handle_impossible_answer"})
    scores_classes = False
    overflow_options = frozenset({"stride"})

    def prepare(self) -> None:
        # The length that models are trained with, and the window of the pipeline of `transformers`.
        self.recommended_length = 384

    @property
    def width(self) -> int:
        return 2

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[EncodedText]:
        """A long context is always read to its end, in windows."""
        default_stride = min(_DEFAULT_STRIDE, tokenizer.max_length // 3)
        return tokenizer.tokenize_contexts(texts, options.overflow.stride, default_stride, first_position)

    def reads_to_end(self, options: Options) -> bool:
        return True

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        super().check(encoded, answer_options)
        text = encoded.text
        if text.token_spans is None:
            raise InputError("question_answering needs a text, but the request has token ids")
        if text.token_spans.special.all() or not text.token_spans.cut(0, len(text.token_spans.text)).strip():
            raise InputError("its context is empty")

    def condense(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> NDArray[np.float64]:
        """The best answers of a window, float64 [candidates, 3] (see `find_candidates`)."""
        assert text.token_spans is not None
        return find_candidates(scores, text.token_spans, options.answer)

    def merge_windows(self, parts: Sequence[NDArray[Any]], encoded: EncodedText, options: Options) -> NDArray[Any]:
        """The candidates of all windows: float64 [candidates, 3]."""
        return np.concatenate(parts)

    def to_records(self, scores: NDArray[Any], encoded: EncodedText, answer_options: AnswerOptions) -> Records:
        """`answer`, `score`, `start` and `end`; a list of these if `top_k` is set."""
        spans = encoded.text.token_spans
        assert spans is not None
        records = find_answers(scores, spans, answer_options)
        if answer_options.top_k is not None:
            return records
        return Records({name: column.reshape(()) for name, column in records.columns.items()})

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        raise AssertionError("question answering always answers with records")

    def outputs(self, options: Options) -> list[OutputSpec]:
        shape = (-1,) if options.answer.top_k is None else (-1, -1)
        columns: dict[str, ElementType] = {"answer": str, "score": np.float32, "start": np.int64, "end": np.int64}
        return [OutputSpec(name, dtype, shape) for name, dtype in columns.items()]
