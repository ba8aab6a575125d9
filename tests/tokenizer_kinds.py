"""The kinds of fast tokenizers that encoders have, by what they make of spaces."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tokenizers import Tokenizer, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.families import albert_unigram, deberta_unigram, roberta_bpe, wordpiece


def _byte_level(add_prefix_space: bool, trim_offsets: bool) -> PreTrainedTokenizerBase:
    """As RoBERTa's and BART's: the space before a word is part of its token, and of its offsets unless they are trimmed."""
    tokenizer = Tokenizer.from_str(roberta_bpe().backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, trim_offsets=trim_offsets)
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # type: ignore[no-untyped-call]


def _without_special_tokens() -> PreTrainedTokenizerBase:
    """As GPT-2's, whose second texts are still of another type."""
    tokenizer = Tokenizer.from_str(roberta_bpe().backend_tokenizer.to_str())
    tokenizer.post_processor = None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")  # type: ignore[no-untyped-call]


def _undivided() -> PreTrainedTokenizerBase:
    """As those of Llama's kind, to which a text is one long word."""
    tokenizer = Tokenizer.from_str(deberta_unigram().backend_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")  # type: ignore[no-untyped-call]


TOKENIZER_KINDS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "WordPiece": wordpiece,
    "byte-level BPE": partial(_byte_level, add_prefix_space=False, trim_offsets=True),
    "byte-level BPE, offsets with spaces": partial(_byte_level, add_prefix_space=False, trim_offsets=False),
    "byte-level BPE, a space before": partial(_byte_level, add_prefix_space=True, trim_offsets=True),
    "byte-level BPE, a space before, offsets with spaces": partial(
        _byte_level, add_prefix_space=True, trim_offsets=False
    ),
    "byte-level BPE, no special tokens": _without_special_tokens,
    "Unigram": albert_unigram,
    "Unigram, Metaspace": deberta_unigram,
    "Unigram, not divided into words": _undivided,
}
