"""A file a task: which model it loads, how it reads the forward pass, and what it answers."""

from __future__ import annotations

from runners.core.task import Task
from runners.encoder.tasks.encoder_task import Head
from runners.encoder.tasks.fill_mask import FillMask
from runners.encoder.tasks.question_answering import QuestionAnswering
from runners.encoder.tasks.sequence_classification import SequenceClassification
from runners.encoder.tasks.text_embedding import TextEmbedding
from runners.encoder.tasks.text_ranking import TextRanking
from runners.encoder.tasks.token_classification import TokenClassification
from runners.encoder.tasks.zero_shot_classification import ZeroShotClassification

HEADS: dict[Task, type[Head]] = {
    Task.FILL_MASK: FillMask,
    Task.QUESTION_ANSWERING: QuestionAnswering,
    Task.SEQUENCE_CLASSIFICATION: SequenceClassification,
    Task.TEXT_EMBEDDING: TextEmbedding,
    Task.TEXT_RANKING: TextRanking,
    Task.TOKEN_CLASSIFICATION: TokenClassification,
    Task.ZERO_SHOT_CLASSIFICATION: ZeroShotClassification,
}

__all__ = ["HEADS", "Head"]
