"""Every pair of a task and a model type that `transformers` registers, and the tokenizer that the type uses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from runners.core.task import Task

# The first names of a task hold for all that it registers; an embedding is of any of these types.
AUTO_CLASSES: dict[Task, Any] = {
    Task.FILL_MASK: AutoModelForMaskedLM,
    Task.TOKEN_CLASSIFICATION: AutoModelForTokenClassification,
    Task.SEQUENCE_CLASSIFICATION: AutoModelForSequenceClassification,
    Task.QUESTION_ANSWERING: AutoModelForQuestionAnswering,
    Task.SPARSE_EMBEDDING: AutoModelForMaskedLM,
    Task.TEXT_EMBEDDING: AutoModel,
    Task.TEXT_RANKING: AutoModelForSequenceClassification,
    Task.ZERO_SHOT_CLASSIFICATION: AutoModelForSequenceClassification,
}
_HEADS: dict[Task, dict[str, str]] = {
    Task.FILL_MASK: dict(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    Task.TOKEN_CLASSIFICATION: dict(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
    Task.SEQUENCE_CLASSIFICATION: dict(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    Task.QUESTION_ANSWERING: dict(modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
}
_BASES = modeling_auto.MODEL_MAPPING_NAMES
_TEXT_ENCODERS = modeling_auto.MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES
# Types without a head for any of the tasks whose vectors people use.
_EMBEDDERS = ("bert-generation", "clip_text_model", "dpr", "embedding_gemma2_text")
# The same classes as for sequence classification, so that a few stand for all.
_RANKED = ("bert", "deberta-v2", "modernbert", "qwen3", "xlm-roberta")
# The same classes as for fill-mask: what SPLADE is trained from, and heads of several kinds.
_SPARSE = (
    "albert", "bert", "convbert", "deberta-v2", "distilbert", "electra", "esm", "mobilebert", "modernbert", "mpnet",
    "reformer", "roberta", "xlm-roberta",
)  # fmt: skip
_ZERO_SHOT = ("bart", "deberta-v2", "distilbert", "roberta", "xlm-roberta")

_KINDS: dict[str, tuple[str, ...]] = {
    "roberta": (
        "bart", "data2vec-text", "ibert", "led", "longformer", "luke", "mvp", "roberta", "roberta-prelayernorm",
        "layoutlmv3", "lilt", "markuplm", "yoso", "mra", "clip_text_model", "opt",
    ),
    "modernbert": ("modernbert", "modernvbert", "esmc", "eurobert", "gte", "neomme"),
    "albert": ("albert", "fnet", "rembert", "big_bird", "nystromformer"),
    "deberta": ("deberta", "deberta-v2"),
    "xlm-roberta": ("camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "jina_embeddings_v3"),
    "t5": ("bigbird_pegasus", "mbart", "mt5", "plbart", "t5", "umt5", "reformer"),
    "xlnet": ("xlnet",),
    "wordpiece": (
        "bert", "bros", "canine", "convbert", "distilbert", "dpr", "electra", "ernie", "esm", "flaubert", "funnel",
        "layoutlm", "layoutlmv2", "lxmert", "megatron-bert", "mobilebert", "mpnet", "nomic_bert", "perceiver",
        "roc_bert", "roformer", "splinter", "squeezebert", "tapas", "xlm", "bert-generation",
    ),
    "bpe with bos": (
        "apertus", "arcee", "deepseek_v2", "deepseek_v3", "embedding_gemma2_text", "gemma", "gemma2", "gemma3",
        "gemma3_text", "helium", "jamba", "llama", "minicpm3", "ministral", "ministral3", "mistral", "mistral4",
        "mixtral", "t5gemma", "t5gemma2", "modernbert-decoder", "zamba", "zamba2", "biogpt", "phimoe",
    ),
}  # fmt: skip
_KIND_BY_TYPE = {model_type: kind for kind, types in _KINDS.items() for model_type in types}


@dataclass(frozen=True, slots=True, order=True)
class Pair:
    """A model type and a task that `transformers` has a class for."""

    model_type: str
    task: Task

    def __str__(self) -> str:
        return f"{self.model_type}-{self.task}"

    @property
    def auto_class(self) -> Any:
        # sentence-t5 and its like are the encoder alone.
        if self.task is Task.TEXT_EMBEDDING and self.model_type in _TEXT_ENCODERS:
            return AutoModelForTextEncoding
        return AUTO_CLASSES[self.task]

    @property
    def tokenizer_kind(self) -> str:
        """What the type really uses; a decoder's BPE adds nothing, unless it is known to."""
        return _KIND_BY_TYPE.get(self.model_type, "bpe")


def tokenizer_kinds(pairs: Iterable[Pair]) -> set[str]:
    return {pair.tokenizer_kind for pair in pairs}


def registered_pairs() -> list[Pair]:
    """All of them, in a fixed order."""
    pairs = {Pair(model_type, task) for task, types in _HEADS.items() for model_type in types}
    types = sorted({pair.model_type for pair in pairs} | {*_EMBEDDERS})
    pairs |= {Pair(name, Task.TEXT_EMBEDDING) for name in types if name in _BASES or name in _TEXT_ENCODERS}
    pairs |= {Pair(name, Task.TEXT_RANKING) for name in _RANKED}
    pairs |= {Pair(name, Task.SPARSE_EMBEDDING) for name in _SPARSE}
    pairs |= {Pair(name, Task.ZERO_SHOT_CLASSIFICATION) for name in _ZERO_SHOT}
    return sorted(pairs)
