"""Texts and a tokenizer for them, for what takes texts instead of tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from benchmarks.gpu.loads import SHORT
from benchmarks.texts import docstrings

_SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# The rehearsal's models have no more.
_VOCABULARY = 2000


def train_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of BERT's kind for the standard library's docstrings, of as many word pieces as they have."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=_VOCABULARY, special_tokens=_SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(docstrings(), trainer)
    ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]", mask_token="[MASK]",
        unk_token="[UNK]", model_max_length=512,
    )  # fmt: skip


def write_texts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Texts of the words of docstrings, of the lengths that the engine gets."""
    words = " ".join(docstrings()).split()
    ids = tokenizer(words, add_special_tokens=False)["input_ids"]
    texts, place = [], 0
    for length in SHORT.draw(count):
        text, room = list[str](), length - 2
        while room > 0:
            text.append(words[place])
            room -= len(ids[place])
            place = (place + 1) % len(words)
        texts.append(" ".join(text))
    return texts
