from __future__ import annotations

import pytest

from runners.errors import ModelLoadError
from runners.task import infer_task


@pytest.mark.parametrize(
    ("architectures", "task"),
    [
        (["BertForMaskedLM"], "fill_mask"),
        (["DistilBertForSequenceClassification"], "sequence_classification"),
        (["XLMRobertaForTokenClassification"], "token_classification"),
        (["BertModel"], "text_embedding"),
        (["MPNetModel"], "text_embedding"),
        (["BertModel", "BertForTokenClassification"], "token_classification"),
        (["BertForPreTraining", "BertForMaskedLM"], "fill_mask"),
        (["BertForMultipleChoice", "BertForMaskedLM"], "fill_mask"),
        (["BertForQuestionAnswering"], "question_answering"),
        (["LlamaForCausalLM"], "text_generation"),
        (["GPT2LMHeadModel"], "text_generation"),
        (["T5ForConditionalGeneration"], "text2text_generation"),
        (["MarianMTModel"], "text2text_generation"),
    ],
)
def test_task_of_architectures(architectures: list[str], task: str) -> None:
    assert infer_task(architectures) == task


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["TapasForQuestionAnswering"], "TapasForQuestionAnswering is made for table_question_answering, which"),
        (["BertForMultipleChoice"], "BertForMultipleChoice is made for multiple_choice, which"),
        (["TimesFmModelForPrediction"], "TimesFmModelForPrediction is made for time_series_forecast, which"),
        (["BertForPreTraining"], "no task can be inferred from BertForPreTraining"),
        ([], "the model's config.json names no architecture"),
        (None, "the model's config.json names no architecture"),
    ],
)
def test_what_cannot_be_served_says_what_can(architectures: list[str] | None, message: str) -> None:
    with pytest.raises(ModelLoadError) as error:
        infer_task(architectures)
    assert str(error.value).startswith(message)
    assert "fill_mask, question_answering, sequence_classification, text2text_generation, text_embedding, " in str(
        error.value
    )
    assert "set --task" in str(error.value)
