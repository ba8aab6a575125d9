"""Tiny seeded translators, each with a real tokenizer of its kind: NLLB, mBART, mBART-50 and M2M100."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    M2M100Tokenizer,
    MBart50Tokenizer,
    MBartTokenizer,
    NllbTokenizer,
)

from benchmarks.texts import docstrings
from tests.families import trained_unigram
from tests.generators import BART

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


def nllb(_: Path) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=1200, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator(docstrings(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return NllbTokenizer(vocab=model["vocab"], merges=merges)


def mbart(_: Path) -> Any:
    return MBartTokenizer(vocab=[*trained_unigram("<unk>", SPECIALS)])


def mbart50(_: Path) -> Any:
    return MBart50Tokenizer(vocab=[*trained_unigram("<unk>", SPECIALS)])


def m2m100(folder: Path) -> Any:
    """Its tokenizer has no fast form."""
    prefix = folder / "pieces"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(list(docstrings())[:2000]), model_prefix=str(prefix), vocab_size=600, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    tokens = [*SPECIALS, *(pieces.IdToPiece(index) for index in range(3, pieces.GetPieceSize()))]
    vocabulary = folder / "pieces.json"
    vocabulary.write_text(json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8")
    # What facebook/m2m100_418M has in its special_tokens_map.json.
    languages = [f"__{name}__" for name in M2M100Tokenizer(str(vocabulary), f"{prefix}.model").lang_code_to_token]
    return M2M100Tokenizer(str(vocabulary), f"{prefix}.model", additional_special_tokens=languages)


# By kind: its tokenizer, the model type, and a source and a target that are not its own.
KINDS: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "nllb": (nllb, "m2m_100", "deu_Latn", "fra_Latn"),
    "mbart": (mbart, "mbart", "de_DE", "fr_XX"),
    "mbart50": (mbart50, "mbart", "de_DE", "fr_XX"),
    "m2m100": (m2m100, "m2m_100", "de", "fr"),
}


def save_translator(folder: Path, kind: str, **tokenizer_config: Any) -> Path:
    """A model of the kind, with its tokenizer.

    Args:
        tokenizer_config: of tokenizer_config.json, as `tgt_lang`.
    """
    make, model_type, _, _ = KINDS[kind]
    tokenizer = make(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | tokenizer_config), encoding="utf-8")
    torch.manual_seed(0)
    size = 1 + max(tokenizer.convert_tokens_to_ids(tokenizer.all_special_tokens))
    config = AutoConfig.for_model(
        model_type, **BART | {"forced_bos_token_id": None}, vocab_size=max(size, len(tokenizer)), pad_token_id=1,
        eos_token_id=2, bos_token_id=0,
    )  # fmt: skip
    auto_class: Any = AutoModelForSeq2SeqLM
    auto_class.from_config(config).save_pretrained(folder)
    return folder
