"""One class a task: which model it loads, how it reads the forward pass, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from runners.arguments import Arguments
from runners.encoder.packing import Rows
from runners.encoder.pooling import load_sentence_transformer
from runners.encoder.tokenization import TokenizedText
from runners.errors import InputError, ModelLoadError
from runners.inference import ClassScores, Numbers, Options, Output, Prediction, TensorSpec, Text, VocabularyScores
from runners.task import Task

# KServe prints probabilities with four decimals.
_PROBABILITY_DECIMALS = 4


class Head(ABC):
    """A task on a loaded model."""

    auto_class: ClassVar[type[Any]]
    accepts_pairs: ClassVar[bool] = False
    rows: ClassVar[Rows] = Rows.ALL
    # Weights that may be missing from a checkpoint because the task does not read them.
    unused_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(self, arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            arguments: where the model came from; some heads read more files from there.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.prompt = ""
        self.lower_case = False
        self.recommended_length: int | None = None

    def check(self, text: TokenizedText) -> None:
        """Refuse a text before it takes the model's time.

        Raises:
            InputError: the text cannot be served; the caller adds its position.
        """
        if not len(text.input_ids):
            raise InputError("it has no tokens")

    def read(self, rows: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        """Share out what the model says of the rows the task reads: float32 [rows of the text, classes] each."""
        return np.split(_to_numpy(rows), np.cumsum(counts)[:-1])

    @abstractmethod
    def predict(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> Prediction:
        """The answer to one text from what `read` gave."""

    @abstractmethod
    def outputs(self, options: Options) -> list[TensorSpec]:
        """The tensors of an answer."""


class SequenceClassification(Head):
    """Class of a text or of a pair; single label, several labels at once, or regression.

    Probabilities follow `transformers.TextClassificationPipeline`: softmax for one label of several, sigmoid for
    independent labels and for a single class, the value itself for regression.
    """

    auto_class = AutoModelForSequenceClassification
    accepts_pairs = True
    rows = Rows.FIRST

    def __init__(self, arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(arguments, model, tokenizer)
        self._classes = int(model.config.num_labels or 0)
        problem: str | None = getattr(model.config, "problem_type", None)
        self._multi_label = problem == "multi_label_classification"
        # A model with one class and no problem type was trained as a regression.
        self._regression = problem == "regression" or (self._classes == 1 and not self._multi_label)
        self._raw_scores = problem == "regression"

    def predict(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> Prediction:
        [scores] = scores
        if options.output is Output.RAW_LOGITS:
            return Prediction(ClassScores(scores, None))
        if options.output is Output.PROBABILITIES:
            return Prediction(ClassScores(self._probabilities(scores), _PROBABILITY_DECIMALS))
        if self._regression:
            return Prediction(Numbers(scores.reshape(()) if self._classes == 1 else scores))
        if self._multi_label:
            return Prediction(Numbers((_sigmoid(scores) > 0.5).astype(np.int64)))
        return Prediction(Numbers(np.asarray(scores.argmax())))

    def _probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._raw_scores:
            return logits
        return _sigmoid(logits) if self._multi_label or self._classes == 1 else _softmax(logits)

    def outputs(self, options: Options) -> list[TensorSpec]:
        if options.output is not Output.LABELS:
            return [TensorSpec("output-0", "BYTES", (-1,))]
        shape = (-1, self._classes) if self._multi_label or (self._regression and self._classes > 1) else (-1,)
        return [TensorSpec("output-0", "FP32" if self._regression else "INT64", shape)]


class TokenClassification(Head):
    """Class of every token, special tokens included as KServe does; [1, tokens] a text."""

    auto_class = AutoModelForTokenClassification

    def predict(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> Prediction:
        match options.output:
            case Output.LABELS:
                return Prediction(Numbers(scores.argmax(axis=-1)[None]), text.offsets)
            case Output.PROBABILITIES:
                return Prediction(ClassScores(_softmax(scores), _PROBABILITY_DECIMALS), text.offsets)
            case Output.RAW_LOGITS:
                return Prediction(ClassScores(scores, None), text.offsets)

    def outputs(self, options: Options) -> list[TensorSpec]:
        labels = options.output is Output.LABELS
        datatype, shape = ("INT64", (-1, 1, -1)) if labels else ("BYTES", (-1, -1))
        tensors = [TensorSpec("output-0", datatype, shape)]
        return [*tensors, TensorSpec("offset_mapping", "INT64", (-1, -1, 2))] if options.offsets else tensors


class FillMask(Head):
    """The most likely token at every mask of a text, decoded together."""

    auto_class = AutoModelForMaskedLM
    accepts_pairs = True
    rows = Rows.MASKS

    def __init__(self, arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(arguments, model, tokenizer)
        if tokenizer.mask_token_id is None:
            raise ModelLoadError("the tokenizer has no mask token, so it cannot do fill_mask")

    def check(self, text: TokenizedText) -> None:
        super().check(text)
        if self.tokenizer.mask_token_id not in text.input_ids:
            cut = f" in its first {len(text.input_ids)} tokens, to which it was truncated" if text.truncated else ""
            raise InputError(f"it has no mask{cut}: write {self.tokenizer.mask_token} where a word is to be filled in")

    def predict(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> Prediction:
        match options.output:
            case Output.LABELS:
                return Prediction(Text(str(self.tokenizer.decode(scores.argmax(axis=-1)))))
            case Output.PROBABILITIES:
                return Prediction(VocabularyScores(_softmax(scores), _PROBABILITY_DECIMALS))
            case Output.RAW_LOGITS:
                return Prediction(VocabularyScores(scores, None))

    def outputs(self, options: Options) -> list[TensorSpec]:
        if options.output is Output.LABELS:
            return [TensorSpec("output-0", "BYTES", (-1,))]
        return [TensorSpec("output-0", "BYTES", (-1, -1, self.model.config.vocab_size))]


class TextEmbedding(Head):
    """One vector a text, pooled as the model's sentence-transformers files say."""

    auto_class = AutoModel
    unused_weights = ("pooler.",)

    def __init__(self, arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(arguments, model, tokenizer)
        files = load_sentence_transformer(arguments, model.device)
        self._pooling = files.pooling
        self.prompt = files.prompt
        self.lower_case = files.lower_case
        self.recommended_length = files.max_length
        self._dimensions = len(self._pooling.pool(torch.zeros(1, model.config.hidden_size, device=model.device)))

    def read(self, rows: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        """Float32 [1, dimensions] each."""
        vectors = torch.stack([self._pooling.pool(hidden) for hidden in torch.split(rows, list(counts))])
        return list(_to_numpy(vectors)[:, None])

    def predict(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> Prediction:
        return Prediction(Numbers(scores[0]))

    def outputs(self, options: Options) -> list[TensorSpec]:
        return [TensorSpec("output-0", "FP32", (-1, self._dimensions))]


HEADS: dict[Task, type[Head]] = {
    Task.FILL_MASK: FillMask,
    Task.SEQUENCE_CLASSIFICATION: SequenceClassification,
    Task.TEXT_EMBEDDING: TextEmbedding,
    Task.TOKEN_CLASSIFICATION: TokenClassification,
}


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # The form by tanh cannot overflow.
    probabilities: NDArray[np.float32] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return probabilities
