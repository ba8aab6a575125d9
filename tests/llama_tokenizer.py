"""A tokenizer as Llama 2's: SentencePiece's pieces, and a token for each byte that has none."""

from __future__ import annotations

import functools

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tests.families import trained_unigram


@functools.cache
def byte_fallback_unigram() -> PreTrainedTokenizerBase:
    specials = ("<unk>", "<s>", "</s>")
    pieces = trained_unigram("<unk>", specials)
    of_bytes = [(f"<0x{code:02X}>", -20.0) for code in range(256)]
    vocab = [*pieces[: len(specials)], *of_bytes, *pieces[len(specials) :]]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.add_special_tokens(list(specials))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
