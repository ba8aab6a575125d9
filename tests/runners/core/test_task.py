from __future__ import annotations

from typing import Any

import pytest

from runners.core.errors import ModelLoadError
from runners.core.task import infer_task, read_architectures, recognize_sentence_transformer


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
        (["BartForSequenceClassification"], "sequence_classification"),
        (["T5ForTokenClassification"], "token_classification"),
        (["UMT5ForQuestionAnswering"], "question_answering"),
        (["BartModel"], "text_embedding"),
        (["T5EncoderModel"], "text_embedding"),
        (["T5GemmaEncoderModel"], "text_embedding"),
        (["BertGenerationEncoder"], "text_embedding"),
        (["XLNetForQuestionAnsweringSimple"], "question_answering"),
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
    assert "fill_mask, question_answering, sequence_classification, sparse_embedding, text2text_generation, " in str(
        error.value
    )
    assert "set --task" in str(error.value)


@pytest.mark.parametrize(
    ("config", "architectures"),
    [
        ({"architectures": ["BertModel", "BertForMaskedLM"]}, ["BertModel", "BertForMaskedLM"]),
        ({"architectures": "BertModel"}, ["BertModel"]),
        ({"architectures": None}, []),
        ({}, []),
    ],
)
def test_architectures_of_a_config(config: dict[str, Any], architectures: list[str]) -> None:
    assert read_architectures(config) == architectures


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "config.json is no JSON object"),
        (None, "config.json is no JSON object"),
        ({"architectures": 5}, "architectures in the model's config.json is 5, not a list of class names"),
        ({"architectures": [5]}, r"is \[5\], not a list of class names"),
    ],
)
def test_what_has_no_architectures(config: Any, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        read_architectures(config)


def modules(*kinds: str) -> list[dict[str, Any]]:
    return [{"idx": index, "name": str(index), "path": "", "type": kind} for index, kind in enumerate(kinds)]


OLD = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Pooling")
NEW = (
    "sentence_transformers.base.modules.transformer.Transformer",
    "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
)


@pytest.mark.parametrize(
    ("files", "settings", "task"),
    [
        (modules(*OLD), None, "text_embedding"),
        (modules(*OLD), {"__version__": {"sentence_transformers": "3.0.0"}}, "text_embedding"),
        (modules(*NEW, "sentence_transformers.base.modules.normalize.Normalize"), {"model_type": "SentenceTransformer"}, "text_embedding"),
        # A cross-encoder of sentence-transformers 6, and one that pools.
        (modules(NEW[0]), {"model_type": "CrossEncoder"}, None),
        (modules(*NEW, "sentence_transformers.base.modules.dense.Dense"), {"model_type": "CrossEncoder"}, None),
        # A sparse encoder that is no SPLADE, an old SPLADE and a new one.
        (modules(*NEW), {"model_type": "SparseEncoder"}, None),
        (modules("sentence_transformers.sparse_encoder.models.MLMTransformer", "sentence_transformers.sparse_encoder.models.SpladePooling"), None, "sparse_embedding"),
        (modules(NEW[0], "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"), {"model_type": "SparseEncoder"}, "sparse_embedding"),
        (modules(NEW[0], "sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"), {"model_type": "CrossEncoder"}, None),
        (None, None, None),
        (None, {"model_type": "SentenceTransformer"}, None),
        ({"Transformer": 1}, None, None),
        (["Transformer", "Pooling"], "x", None),
        ([], None, None),
    ],
)  # fmt: skip
def test_the_task_of_sentence_transformers_files(files: Any, settings: Any, task: str | None) -> None:
    assert recognize_sentence_transformer(files, settings) == task
