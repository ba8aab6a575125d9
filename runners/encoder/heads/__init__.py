"""A file a task: which model it loads, how it reads the forward pass, and what it answers."""

from __future__ import annotations

from runners.encoder.heads.fill_mask import FillMask
from runners.encoder.heads.head import Head
from runners.encoder.heads.question_answering import QuestionAnswering
from runners.encoder.heads.sequence_classification import SequenceClassification
from runners.encoder.heads.text_embedding import TextEmbedding
from runners.encoder.heads.text_ranking import TextRanking
from runners.encoder.heads.token_classification import TokenClassification
from runners.encoder.heads.zero_shot_classification import ZeroShotClassification
from runners.task import Task

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
