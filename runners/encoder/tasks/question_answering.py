"""Question answering."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForQuestionAnswering

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError
from runners.core.predictions import Numbers, Options, Records, TensorSpec, TextInput
from runners.encoder.sequences import Reading, TokenizedText
from runners.encoder.tasks.answer_spans import find_answers, find_candidates
from runners.encoder.tasks.encoder_task import Head
from runners.encoder.tokenization import TextTokenizer

# How many tokens the windows of a context share, as in `transformers`' pipeline.
_USUAL_STRIDE = 128


class QuestionAnswering(Head):
    """Where in a context the answer to a question is; a pair is a question and a context."""

    auto_class = AutoModelForQuestionAnswering
    accepts_pairs = needs_pairs = True
    tensors_of_model = 2
    answer_options = frozenset({"top_k", "max_answer_len", "handle_impossible_answer"})
    scores_classes = False
    overflow_options = frozenset({"stride"})

    def prepare(self) -> None:
        # What models are trained with and `transformers`' pipeline reads at a time.
        self.recommended_length = 384

    @property
    def width(self) -> int:
        return 2

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """A long context is always read to its end, in windows that share fewer tokens beside a long question."""
        usual = min(_USUAL_STRIDE, tokenizer.max_length // 3)
        return tokenizer.tokenize_contexts(texts, options.overflow.stride, usual, first_position)

    def reads_to_end(self, options: Options) -> bool:
        return True

    def check(self, reading: Reading, wanted: AnswerOptions) -> None:
        super().check(reading, wanted)
        text = reading.text
        if text.source is None:
            raise InputError("it is given as tokens, and an answer is a part of a text")
        if text.source.special.all() or not text.source.cut(0, len(text.source.text)).strip():
            raise InputError("its context is empty")

    def condense(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> NDArray[np.float64]:
        """The best answers of a window, as `find_candidates` gives them: the search is part of its own batch."""
        assert text.source is not None
        return find_candidates(scores, text.source, options.answer)

    def gather(self, parts: Sequence[NDArray[Any]], reading: Reading, options: Options) -> NDArray[Any]:
        """Those of all windows."""
        return np.concatenate(parts)

    def tabulate(self, scores: NDArray[Any], reading: Reading, wanted: AnswerOptions) -> Records:
        """`answer`, `score`, `start` and `end`; lists of them for `top_k`."""
        source = reading.text.source
        assert source is not None
        table = find_answers(scores, source, wanted)
        if wanted.top_k is not None:
            return table
        return Records({name: column.reshape(()) for name, column in table.columns.items()})

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        raise AssertionError("its answers are records")

    def outputs(self, options: Options) -> list[TensorSpec]:
        shape = (-1,) if options.answer.top_k is None else (-1, -1)
        columns = {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64"}
        return [TensorSpec(name, datatype, shape) for name, datatype in columns.items()]
