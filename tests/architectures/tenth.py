"""The pairs that run with all other tests: every mode, task and kind of tokenizer, and what is most used."""

from __future__ import annotations

from runners.core.task import Task
from tests.architectures.registry import Pair

_TYPES: dict[Task, str] = {
    Task.FILL_MASK: "albert bert convbert deberta-v2 modernbert mpnet reformer roberta xlm-roberta",
    Task.QUESTION_ANSWERING: "bert big_bird deberta-v2 distilbert funnel longformer roberta splinter t5 xlnet",
    Task.SEQUENCE_CLASSIFICATION: (
        "bart deberta-v2 distilbert fnet gpt2 llama mixtral modernbert nystromformer roberta t5 xlm-roberta xlnet yoso"
    ),
    Task.SPARSE_EMBEDDING: "bert mobilebert",
    Task.TEXT_EMBEDDING: "bert gemma3_text mistral mobilebert modernbert mpnet nomic_bert qwen3 roberta t5 xlm-roberta",
    Task.TEXT_RANKING: "bert xlm-roberta",
    Task.TOKEN_CLASSIFICATION: "bert deberta-v2 distilbert layoutlmv3 roberta squeezebert",
    Task.ZERO_SHOT_CLASSIFICATION: "bart deberta-v2",
}
_PAIRS = [Pair(model_type, task) for task, types in _TYPES.items() for model_type in types.split()]
# Each with the dtype that it runs in beside float32.
TENTH: dict[Pair, str] = {pair: ("bfloat16", "float16")[index % 2] for index, pair in enumerate(_PAIRS)}
