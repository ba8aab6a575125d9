from __future__ import annotations

import pytest

from benchmarks.ceiling import count_flops
from runners.core.arguments import Arguments
from runners.core.task import Task
from runners.encoder.tasks import ENCODER_TASKS
from tests.conftest import ModelFolder


@pytest.mark.parametrize(
    ("model_type", "task", "layers_of_a_text"),
    [
        # The pooler and the classifier read the first token.
        ("bert", Task.SEQUENCE_CLASSIFICATION, lambda width, labels: width * width + width * labels),
        ("bert", Task.TOKEN_CLASSIFICATION, lambda width, labels: 0),
    ],
)
def test_work_is_that_of_the_stock_model(
    model_folder: ModelFolder, model_type: str, task: Task, layers_of_a_text: object
) -> None:
    arguments = Arguments.model_validate({"model_dir": str(model_folder(model_type, task))})
    auto_class = ENCODER_TASKS[task].auto_class
    config = auto_class.from_pretrained(arguments.model).config
    width, inner = config.hidden_size, config.intermediate_size
    by_token = config.num_hidden_layers * (4 * width * width + 2 * width * inner)
    if task is Task.TOKEN_CLASSIFICATION:
        by_token += width * config.num_labels
    assert callable(layers_of_a_text)
    fixed = layers_of_a_text(width, config.num_labels)
    assert count_flops(arguments, auto_class) == (2 * fixed, 2 * by_token)
