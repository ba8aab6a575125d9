"""The tasks, one class each: which model a task loads, how it tokenizes texts, and how it answers.

A new task is a class here and a line in `ENCODER_TASKS`.
"""

from __future__ import annotations

from runners.core.task import Task
from runners.encoder.tasks.encoder_task import EncoderTask
from runners.encoder.tasks.fill_mask import FillMask
from runners.encoder.tasks.question_answering import QuestionAnswering
from runners.encoder.tasks.sequence_classification import SequenceClassification
from runners.encoder.tasks.sparse_embedding import SparseEmbedding
from runners.encoder.tasks.text_embedding import TextEmbedding
from runners.encoder.tasks.text_ranking import TextRanking
from runners.encoder.tasks.token_classification import TokenClassification
from runners.encoder.tasks.zero_shot_classification import ZeroShotClassification

ENCODER_TASKS: dict[Task, type[EncoderTask]] = {
    Task.FILL_MASK: FillMask,
    Task.QUESTION_ANSWERING: QuestionAnswering,
    Task.SEQUENCE_CLASSIFICATION: SequenceClassification,
    Task.SPARSE_EMBEDDING: SparseEmbedding,
    Task.TEXT_EMBEDDING: TextEmbedding,
    Task.TEXT_RANKING: TextRanking,
    Task.TOKEN_CLASSIFICATION: TokenClassification,
    Task.ZERO_SHOT_CLASSIFICATION: ZeroShotClassification,
}

__all__ = ["ENCODER_TASKS", "EncoderTask"]
