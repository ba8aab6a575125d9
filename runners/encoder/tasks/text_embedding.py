"""Text embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModel

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError
from runners.core.predictions import MAIN, TOKEN_EMBEDDINGS, Numbers, Options, OutputSpec
from runners.core.request_options import SupportedOptions
from runners.core.task import Task
from runners.encoder.segments import Segments
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks.encoder_task import EncoderTask
from runners.encoder.tasks.pooling import load_sentence_transformer
from runners.encoder.transformer_settings import EMBEDDER


class TextEmbedding(EncoderTask):
    """One vector per text, by the model's sentence-transformers files.

    As in sentence-transformers, `dimensions` (of a request or of the operator) wins over the files' `truncate_dim`. A
    vector that is cut to `dimensions` is normalized again if the model normalizes; one that is cut to `truncate_dim` is
    not. `normalize` decides in both cases if it is set, as `normalize_embeddings` of `encode` does.
    """

    auto_class = AutoModel
    sentence_transformer = EMBEDDER
    unused_weights = ("pooler.",)
    answer_options = frozenset({"dimensions", "normalize", "prompt_name"})
    scores_classes = False

    def prepare(self) -> None:
        self._files = load_sentence_transformer(self.arguments, self.device)
        self._pooling = self._files.pooling
        self.set_width(int(self.config.get_text_config().hidden_size))

    def set_width(self, width: int) -> None:
        """Set the size of the token vectors, which for Reformer is twice the `hidden_size` of its config."""
        self._width = width
        row = torch.zeros(1, width, device=self.device)
        self._whole = self._pooling.pool(row, Segments([1], self.device)).shape[1]
        self._dimensions = min(self._whole, self._files.truncate_dim or self._whole)
        self.pooled_widths = tuple(sorted({self._whole, self._dimensions}, reverse=True))

    def reduce_rows(self, rows: Tensor, counts: Sequence[int], options: Sequence[Options]) -> Tensor:
        """The whole vector of each text, [texts, 1, dimensions].

        Args:
            rows: [tokens of all texts, hidden], or [texts, 1, dimensions] if a predictor has pooled them.

        Returns:
            float32; one row of all numbers if the options ask for vectors of tokens: the texts' before the tokens'.
        """
        wants_tokens = _wants_tokens(options)
        if rows.ndim == 3:
            if wants_tokens:
                raise InputError("the predictor answers with a vector for each text, and with none for its tokens")
            return rows.float()
        vectors = self._pooling.pool(rows, Segments(counts, rows.device))[:, None]
        if not wants_tokens:
            return vectors
        return torch.cat((vectors.flatten(), rows[: sum(counts)].float().flatten()))

    def split_scores(
        self, scores: NDArray[np.float32], counts: Sequence[int], options: Sequence[Options]
    ) -> list[NDArray[np.float32]]:
        """The vector of each text, float32 [1, dimensions]; below it those of its tokens if the options ask so."""
        if scores.ndim == 3:
            return list(scores)
        vectors, tokens = np.split(scores, [len(counts) * self._whole])
        by_text = super().split_scores(tokens.reshape(-1, self._width), counts, options)
        return [
            self._join(vector, each) if TOKEN_EMBEDDINGS in option.outputs else vector[None]
            for vector, each, option in zip(vectors.reshape(-1, self._whole), by_text, options, strict=True)
        ]

    def _join(self, vector: NDArray[np.float32], tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """The vector of a text above those of its tokens: float32 [1 + tokens, the longer size]."""
        # One array, because the worker passes one for each text.
        joined = np.zeros((1 + len(tokens), max(self._whole, self._width)), dtype=np.float32)
        joined[0, : self._whole] = vector
        joined[1:, : self._width] = tokens
        return joined

    @property
    def width(self) -> int:
        return self._width

    def check_options(self, options: Options) -> None:
        dimensions = options.answer.dimensions
        # A predictor may have cut its vectors to `truncate_dim` already.
        most = self._whole if self.arguments.predictor_host is None else self._dimensions
        if dimensions is not None and dimensions > most:
            raise InputError(f"dimensions is {dimensions}; the model's vectors have {most}", "dimensions")
        self._files.prompts.check(options.answer)
        if not self._files.pools_prompts and self._files.prompts.find(options.answer):
            raise InputError("the model pools without the prompt, which this server does not do", "prompt_name")

    @property
    def _normalizes(self) -> bool:
        """Whether the model's own vectors have length 1."""
        return self._pooling.normalize and self._dimensions == self._whole

    def supported_options(self, task: Task) -> SupportedOptions:
        prompt_names = tuple(self._files.prompts.by_name)
        return replace(super().supported_options(task), prompt_names=prompt_names, normalizes=self._normalizes)

    def prompt(self, answer_options: AnswerOptions) -> str:
        return self._files.prompts.find(answer_options)

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        vector = scores[0, : self._whole]
        dimensions, normalize = options.answer.dimensions, options.answer.normalize
        vector = vector[: dimensions or self._dimensions]
        if normalize is None:
            normalize = self._pooling.normalize and dimensions is not None
        if normalize and not (self._pooling.normalize and len(vector) == self._whole):
            # With the epsilon of `torch.nn.functional.normalize`.
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return Numbers(vector)

    def named_output(self, name: str, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [tokens, hidden], special tokens and a prompt's included, as the model's last layer has them."""
        return scores[1:, : self._width]

    def count_scores(self, text: TokenizedText) -> int:
        return len(text.input_ids) * self._width

    def named_outputs(self) -> list[OutputSpec]:
        return [OutputSpec(TOKEN_EMBEDDINGS, np.float32, (-1, -1, self._width))]

    def outputs(self, options: Options) -> list[OutputSpec]:
        return [OutputSpec(MAIN, np.float32, (-1, options.answer.dimensions or self._dimensions))]

    @property
    def properties(self) -> dict[str, str]:
        return {
            "dimensions": str(self._dimensions),
            "normalized": str(self._normalizes).lower(),
            "pooling": self._pooling.name,
            **self._files.prompts.properties,
        }


def _wants_tokens(options: Sequence[Options]) -> bool:
    """Whether a text's answer has the vectors of its tokens."""
    return any(TOKEN_EMBEDDINGS in each.outputs for each in options)
