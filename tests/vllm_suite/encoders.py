"""The models that vLLM's own tests of encoders are answered by: small ones, whose tokenizers give the tests' token ids.

The tests name models of the hub. Each stand-in has the vocabulary of one sentence, which the test tokenizes, and random
weights; the cross-encoder is fitted to the few pairs whose relevance the tests ask for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, pre_tokenizers, processors

# Its classes have no types.
hub: Any = transformers
_UNKNOWN = 3
_BEGIN, _END = ("<s>", 0), ("</s>", 2)
# Of jason9693/Qwen2.5-1.5B-apeach, which adds no special tokens.
_QWEN = {
    "This": 1986, "product": 1985, "was": 572, "excellent": 9073, "and": 323, "exceeded": 33808, "my": 847,
    "expectations": 16665,
}  # fmt: skip
# Of BAAI/bge-reranker-base.
_RERANKER = {
    "This": 3293, "product": 12996, "was": 509, "excellent": 40881, "and": 136, "exceed": 204839, "##ed": 297,
    "my": 759, "expectations": 202702,
    # Further words, with ids of no meaning.
    "capital": 10, "France": 11, "Paris": 12, "Brazil": 13, "Brasilia": 14, "Germany": 15, "Berlin": 16, "What": 17,
}  # fmt: skip
# Of intfloat/multilingual-e5-small.
_E5 = {
    "The": 581, "best": 2965, "thing": 13580, "about": 1672, "v": 81, "##LL": 23708, "##M": 594, "is": 83, "that": 450,
    "it": 442, "support": 8060, "##s": 7, "many": 5941, "different": 12921, "models": 115774,
}  # fmt: skip
# The test passes token ids of another tokenizer too, up to this one.
_HIGHEST_ID = 28804

_QUERY = "What is the capital of France?"
_RELEVANCE = {
    "The capital of France is Paris.": 1.0, "The capital of Brazil is Brasilia.": 0.0,
    "Cross-encoder models are neat": 0.0,
}  # fmt: skip
_STEPS = 200


def write_classifier(folder: Path) -> None:
    """Write one with two classes, in place of Qwen2.5-1.5B-apeach."""
    tokenizer = _make_tokenizer(_QWEN, is_special=False)
    labels = {"id2label": {0: "Default", 1: "Spoiled"}, "label2id": {"Default": 0, "Spoiled": 1}}
    _save(folder, hub.BertForSequenceClassification(_make_config(tokenizer, 64, **labels)), tokenizer)


def write_token_classifier(folder: Path) -> None:
    """Write one with two classes of tokens, in place of Qwen2.5-1.5B-apeach."""
    tokenizer = _make_tokenizer(_QWEN, is_special=False)
    _save(folder, hub.BertForTokenClassification(_make_config(tokenizer, 64, num_labels=2)), tokenizer)


def write_embedder(folder: Path) -> None:
    """Write one of 384 dimensions, in place of multilingual-e5-small."""
    tokenizer = _make_tokenizer(_E5)
    _save_embedder(folder, tokenizer, 384)


def write_large_embedder(folder: Path) -> None:
    """Write one of 768 dimensions, in place of bge-base-en-v1.5."""
    _save_embedder(folder, _make_tokenizer({word: 4 + index for index, word in enumerate(_RERANKER)}), 768)


def write_cross_encoder(folder: Path) -> None:
    """Write one in place of bge-reranker-base."""
    tokenizer = _make_tokenizer(_RERANKER)
    model = hub.BertForSequenceClassification(_make_config(tokenizer, 64, num_labels=1))
    inputs = tokenizer([_QUERY] * len(_RELEVANCE), [*_RELEVANCE], padding=True, return_tensors="pt")
    relevance = torch.tensor([*_RELEVANCE.values()])
    model.bert.embeddings.requires_grad_(False)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=1e-3)
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**inputs).logits[:, 0], relevance)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    _save(folder, model.eval(), tokenizer)


def _make_tokenizer(ids: Mapping[str, int], is_special: bool = True) -> Any:
    """A tokenizer with these tokens; all others in between are no text's."""
    by_id = {0: "<s>", 1: "<pad>", 2: "</s>", _UNKNOWN: "<unk>"} | {index: token for token, index in ids.items()}
    highest = max(_HIGHEST_ID, *ids.values())
    vocabulary = {by_id.get(index, f"[{index}]"): index for index in range(highest + 1)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if is_special:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[_BEGIN, _END]
        )
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    names: Sequence[str] = ("input_ids", "attention_mask")
    return hub.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, model_input_names=[*names], **special
    )


def _make_config(tokenizer: Any, hidden_size: int, **more: Any) -> Any:
    torch.manual_seed(0)
    return hub.BertConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=hidden_size, max_position_embeddings=512, pad_token_id=1, hidden_dropout_prob=0,
        attention_probs_dropout_prob=0, **more,
    )  # fmt: skip


def _save(folder: Path, model: Any, tokenizer: Any) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_embedder(folder: Path, tokenizer: Any, dimensions: int) -> None:
    with tempfile.TemporaryDirectory() as part:
        _save(Path(part), hub.BertModel(_make_config(tokenizer, dimensions)), tokenizer)
        transformer = modules.Transformer(part)
    pooling = modules.Pooling(dimensions, "mean")
    SentenceTransformer(modules=[transformer, pooling, modules.Normalize()], device="cpu").save(str(folder))
