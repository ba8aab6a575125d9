"""How often the sentiment model is right on the held-out tenth: `python -m demo.sentiment.evaluate FOLDER`.

It prints the table of the model card.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from demo.sentiment.data import SOURCES, Sentence, load_sentences

# Mean ratings nearer to 0 than this have no sign to speak of; the second asks for nearly all sentences.
THRESHOLDS = (0.5, 0.1)
ROWS = {"movies and products": ("movies", "products"), **{name: (name,) for name in SOURCES}, "all": tuple(SOURCES)}


def make_table(folder: Path, sentences: Sequence[Sentence]) -> str:
    """The table, in Markdown, of those of `sentences` that are held out."""
    held_out = [sentence for sentence in sentences if sentence.part == "held_out"]
    rated = list(zip(held_out, predict(folder, [sentence.text for sentence in held_out]), strict=True))
    heads = " | ".join(f"rated {threshold} or more from 0 | sentences" for threshold in THRESHOLDS)
    lines = [f"| held-out tenth | {heads} |", "|---|" + "--:|" * 2 * len(THRESHOLDS)]
    for row, sources in ROWS.items():
        cells = []
        for threshold in THRESHOLDS:
            right = [
                chosen == (sentence.rating > 0)
                for sentence, chosen in rated
                if sentence.source in sources and abs(sentence.rating) >= threshold
            ]
            cells.append(f"{100 * sum(right) / len(right):.1f} % | {len(right)}")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def predict(folder: Path, texts: Sequence[str]) -> list[bool]:
    """Whether each text is positive to the model."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    positive = []
    with torch.inference_mode():
        for text in texts:
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0]
            positive.append(model.config.id2label[int(logits.argmax())] == "positive")
    return positive


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m demo.sentiment.evaluate FOLDER")
    sys.stdout.write(make_table(Path(sys.argv[1]), load_sentences()) + "\n")
