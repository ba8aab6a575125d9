"""Sparse embedding: SPLADE."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from runners.core.answer_options import AnswerOptions
from runners.core.predictions import Numbers, Options, OutputSpec, Prediction, Records
from runners.core.request_options import SupportedOptions
from runners.core.task import Task
from runners.encoder.forward import TokenSelection
from runners.encoder.sequences import EncodedText
from runners.encoder.tasks.encoder_task import EncoderTask
from runners.encoder.tasks.sparse_pooling import SparsePooling, load_sparse_encoder
from runners.encoder.transformer_settings import SPARSE_ENCODER


class SparseEmbedding(EncoderTask):
    """Weighs the entries of the vocabulary for each text, by the model's sentence-transformers files.

    The answer has the entries whose weight is not 0. As in sentence-transformers, `max_active_dims` (of a request or of
    the operator) wins over that of the files.
    """

    auto_class = AutoModelForMaskedLM
    selection = TokenSelection.POOLED
    runs_on_predictor = False
    sentence_transformer = SPARSE_ENCODER
    answer_options = frozenset({"max_active_dims", "prompt_name"})
    scores_classes = False

    def prepare(self) -> None:
        self._files = load_sparse_encoder(self.arguments)

    @property
    def pooling(self) -> SparsePooling:
        return self._files.pooling

    @property
    def width(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    def check_options(self, options: Options) -> None:
        self._files.prompts.check(options.answer)

    def supported_options(self, task: Task) -> SupportedOptions:
        return replace(super().supported_options(task), prompt_names=tuple(self._files.prompts.by_name))

    def prompt(self, answer_options: AnswerOptions) -> str:
        return self._files.prompts.find(answer_options)

    def to_records(self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions) -> Records:
        """`index` (a token id) and `value` of every entry whose value is not 0, in the order of the vocabulary."""
        [weights] = scores
        index = np.flatnonzero(weights)
        most = answer_options.max_active_dims or self._files.max_active_dims
        if most is not None and len(index) > most:
            # Those with the highest weights; of equal ones the first.
            index = np.sort(index[np.argsort(-weights[index], kind="stable")[:most]])
        return Records({"index": index, "value": weights[index]})

    def count_numbers(self, prediction: Prediction) -> int:
        """How many entries there are is known only now."""
        return prediction.records.size

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        raise NotImplementedError("the answer is always records")

    def outputs(self, options: Options) -> list[OutputSpec]:
        return [OutputSpec("index", np.int64, (-1, -1)), OutputSpec("value", np.float32, (-1, -1))]

    @property
    def properties(self) -> dict[str, str]:
        return {"dimensions": str(self.width), "pooling": "splade", **self._files.prompts.properties}
