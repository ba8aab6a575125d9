"""The task of a model whose operator names none."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from runners.encoder.loader import choose_task


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"num_labels": 1}, "text_ranking"),
        ({"num_labels": 1, "problem_type": "regression"}, "text_ranking"),
        ({"num_labels": 1, "problem_type": "multi_label_classification"}, "sequence_classification"),
        ({"num_labels": 2}, "sequence_classification"),
        ({"num_labels": 1, "architectures": ["BertForTokenClassification"]}, "token_classification"),
    ],
)
def test_the_task_is_inferred(config: dict[str, Any], task: str) -> None:
    architectures = {"architectures": ["BertForSequenceClassification"]}
    assert choose_task(AutoConfig.for_model("bert", **architectures | config), task_of_files=None) == task
