"""The kinds of tokenizers that the model types really use; all of them fast, all of them small."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, XLMRobertaTokenizer

from benchmarks.texts import docstrings
from tests import families

# Longest text in tokens; models have positions for more, some of which start counting late.
MAX_LENGTH = 96


def _with_template(
    tokenizer: Tokenizer, single: str, pair: str, tokens: dict[str, str], **settings: Any
) -> PreTrainedTokenizerBase:
    if single:
        names = sorted({part.partition(":")[0] for part in f"{single} {pair}".split() if not part.startswith("$")})
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=pair, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
        )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_input_names=["input_ids", "attention_mask"], **tokens, **settings
    )


def _unigram() -> Tokenizer:
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<sep>", "<cls>")
    vocabulary = families.trained_unigram("<unk>", specials)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=specials.index("<unk>")))
    tokenizer.add_special_tokens(list(specials))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def wordpiece() -> PreTrainedTokenizerBase:
    """BERT's, with fewer words."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=2000, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator((text.lower() for text in docstrings()), trainer)
    return BertTokenizer(vocab=tokenizer.get_vocab())


def xlm_roberta_unigram() -> PreTrainedTokenizerBase:
    specials = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", "<sep>", "<cls>")
    return XLMRobertaTokenizer(vocab=families.trained_unigram("<unk>", specials))


def t5_unigram() -> PreTrainedTokenizerBase:
    """T5's and mBART's: the end is marked, the beginning is not."""
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return _with_template(_unigram(), "$A </s>", "$A </s> $B </s>", tokens)


def xlnet_unigram() -> PreTrainedTokenizerBase:
    """XLNet's: [CLS] is the last token, and padding goes before the text."""
    tokens = {
        "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>",
        "sep_token": "<sep>", "cls_token": "<cls>",
    }  # fmt: skip
    tokenizer = _with_template(
        _unigram(), "$A:0 <sep>:0 <cls>:2", "$A:0 <sep>:0 $B:1 <sep>:1 <cls>:2", tokens, padding_side="left"
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def decoder_bpe(bos: bool) -> PreTrainedTokenizerBase:
    """GPT-2's and Qwen's, which add nothing, or Llama's, which marks the beginning."""
    tokenizer = Tokenizer.from_str(families.trained_bpe().to_str())
    tokenizer.decoder = decoders.ByteLevel()
    tokens = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    template = ("<s> $A", "<s> $A <s> $B") if bos else ("", "")
    return _with_template(tokenizer, *template, tokens)


KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "wordpiece": wordpiece,
    "roberta": families.roberta_bpe,
    "modernbert": families.modernbert_bpe,
    "albert": families.albert_unigram,
    "deberta": families.deberta_unigram,
    "xlm-roberta": xlm_roberta_unigram,
    "t5": t5_unigram,
    "xlnet": xlnet_unigram,
    "bpe": lambda: decoder_bpe(bos=False),
    "bpe with bos": lambda: decoder_bpe(bos=True),
}


@functools.cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    tokenizer = KINDS[kind]()
    tokenizer.model_max_length = MAX_LENGTH
    return tokenizer
