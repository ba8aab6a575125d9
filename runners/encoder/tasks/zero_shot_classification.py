"""Zero-shot classification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError, ModelLoadError
from runners.core.predictions import Options, Records, TextInput
from runners.core.task import ENTAILMENT
from runners.encoder.sequences import EncodedText
from runners.encoder.tasks.encoder_task import CLASS_OUTPUTS
from runners.encoder.tasks.probabilities import softmax
from runners.encoder.tasks.sequence_classification import SequenceClassification, pick_best
from runners.encoder.tokenization import TextTokenizer


class ZeroShotClassification(SequenceClassification):
    """Scores labels that the request names, with a model for natural language inference (NLI).

    Each label makes a hypothesis, and the model scores the pair of the text and each hypothesis. Without labels the
    answer is that of sequence classification. Scores are those of `transformers.ZeroShotClassificationPipeline`.
    """

    answer_options = SequenceClassification.answer_options | {"candidate_labels", "hypothesis_template", "multi_label"}
    # These outputs are about the model's own classes, which candidate labels replace.
    excluded_outputs: ClassVar[Mapping[str, frozenset[str]]] = {"candidate_labels": CLASS_OUTPUTS}

    def prepare(self) -> None:
        super().prepare()
        names = [self.class_name(index).lower() for index in range(self.classes)]
        entailment_classes = [index for index, name in enumerate(names) if name.startswith(ENTAILMENT)]
        if not entailment_classes or self.classes < 2:
            raise ModelLoadError(
                f"zero-shot classification needs a class named {ENTAILMENT}; the model's are {', '.join(names)}"
            )
        self._entailment = entailment_classes[0]
        self._contradiction = -1 if self._entailment == 0 else 0

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[EncodedText]:
        """One sequence per label."""
        labels = options.answer.candidate_labels
        if not labels:
            return super().tokenize(tokenizer, texts, options, first_position)
        for position, premise in enumerate(texts, first_position):
            if premise.pair is not None:
                raise InputError(f"text {position} is a pair, but candidate_labels take single texts only")
        hypotheses = [options.answer.hypothesis_template.replace("{}", label) for label in labels]
        return tokenizer.cross([premise.text for premise in texts], hypotheses, options.overflow, first_position)

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        super().check(encoded, answer_options)
        if answer_options.candidate_labels and len(encoded.sequences) != len(answer_options.candidate_labels):
            raise InputError("candidate_labels need a text, but the request has token ids")

    def count_sequences(self, options: Options) -> int:
        return max(1, len(options.answer.candidate_labels))

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """The logits of every label, float32 [labels, classes]; without labels see `SequenceClassification`."""
        return (
            np.concatenate(parts) if options.answer.candidate_labels else super().merge_windows(parts, encoded, options)
        )

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """`label` and `score` of every label, best first: [labels]."""
        labels = answer_options.candidate_labels
        if not labels:
            return super().to_records(scores, encoded, answer_options)
        if answer_options.multi_label or len(labels) == 1:
            values = softmax(scores[:, [self._contradiction, self._entailment]])[:, 1]
        else:
            values = softmax(scores[:, self._entailment])
        best = pick_best(values, answer_options.top_k, answer_options.threshold)
        return Records({"label": np.array(labels, dtype=object)[best], "score": values[best]})

    def _lists(self, answer_options: AnswerOptions) -> bool:
        return bool(answer_options.candidate_labels) or super()._lists(answer_options)
